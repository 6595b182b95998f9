package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/server/api/client"
)

func accountsOfATest() []client.Account {
	at := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	told := at.Add(-12 * time.Second)
	whole := client.Balance{Lane: "vitals", Epoch: "aa", Assigned: 1234, Journaled: 1200, Stored: 1199, Dead: 1, Buffered: 20, Parked: 1, Lost: 12, Void: 1, Told: true,
		Balances: true, AtMost: []string{"buffered"}}
	sum := whole
	sum.Epoch = ""
	short := client.Balance{Lane: "alarm", Epoch: "bb", Assigned: 10, Journaled: 7, Stored: 6, Told: true, Difference: 3, Unsettled: 1, Missing: []client.Span{{First: 4, Last: 5}}}
	silent := client.Balance{Lane: "self", Epoch: "cc", Assigned: 1, Journaled: 1, Stored: 1}
	return []client.Account{
		{Gateway: "icu-7", At: at, Reported: &told, Lanes: []client.Balance{sum}, Epochs: []client.Balance{whole}},
		{Gateway: "icu-8", At: at, Lanes: []client.Balance{silent}, Epochs: []client.Balance{short, silent}},
	}
}

func TestAccountPageLinesUp(t *testing.T) {
	want := `GATEWAY  LANE    ASSIGNED  JOURNALED  STORED  PENDING  DEAD  BUFFERED  PARKED  LOST  VOID  DIFFERENCE  REPORTED
icu-7    vitals     1,234      1,200   1,199        0     1      <=20       1    12     1           0  12s ago
icu-8    self           1          1       1        0     0         0       0     0     0     unknown  never
`
	if got := accountPage(accountsOfATest(), false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := accountPage(accountsOfATest(), true); !strings.Contains(got, "icu-8    alarm   bb           10") {
		t.Errorf("by epoch:\n%s", got)
	}
	if got := accountPage(nil, false); got != "no batch has come yet\n" {
		t.Errorf("nothing: %q", got)
	}
}

func TestAccountDoubtsNameEachRow(t *testing.T) {
	want := []string{
		"icu-8 alarm of epoch bb does not balance: nobody accounts for 3 of 10 numbers (4-5 and others); 7 batches are journaled, 6 stored, 0 pending and 0 dead",
		"icu-8 self of epoch cc does not balance: no report of the gateway has spoken of it yet",
	}
	if got := accountDoubts(accountsOfATest()); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}
