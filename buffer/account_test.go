package buffer

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// account gives what a buffer says of one epoch's lane, as text; "" when it says nothing.
func account(b *Buffer, epoch int, lane uint8) string {
	for _, a := range b.Accounts() {
		if a.Epoch == epochOf(epoch) && a.Lane == lane {
			return fmt.Sprintf("next %d waiting %d parked %d held %v %t lost %v %t", a.Next, a.Waiting, a.Parked, a.Held, a.HeldUpper, a.Lost, a.LostUpper)
		}
	}
	return ""
}

// TestTakeFollowsTheOrder that the configuration gives, which need not be that of the lanes.
func TestTakeFollowsTheOrder(t *testing.T) {
	c := testConfig(t.TempDir())
	c.Order = []string{"self", "alarm", "vitals"}
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, c)
	for lane := range uint8(3) {
		if err := b.Append([]Item{itemOf(1, lane, 0, 100)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []uint8{2, 0, 1} {
		if out, err := b.Take(1); err != nil || len(out) != 1 || out[0].ID.Lane != want {
			t.Fatalf("%v %v; expected one of lane %d", out, err, want)
		}
	}
	for _, order := range [][]string{{"self"}, {"self", "self", "alarm"}, {"self", "alarm", "other"}} {
		c.Order = order
		if _, err := open(c); err == nil || !strings.Contains(err.Error(), "order") {
			t.Errorf("order %v: %v", order, err)
		}
	}
}

func TestAccountsNameWhatWaits(t *testing.T) {
	c := testConfig(t.TempDir())
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, c)
	want := func(epoch int, lane uint8, text string) {
		t.Helper()
		if got := account(b, epoch, lane); got != text {
			t.Errorf("%q; expected %q", got, text)
		}
	}
	want(1, 1, "")
	for n := range uint64(10) {
		if err := b.Append([]Item{itemOf(1, 1, n, 2000)}); err != nil {
			t.Fatal(err)
		}
	}
	want(1, 1, "next 10 waiting 10 parked 0 held [{0 9}] false lost [] false")
	out, err := b.Take(6)
	if err != nil || len(out) != 6 {
		t.Fatal(err)
	}
	b.Ack(out[0].ID, out[1].ID, out[4].ID)
	b.Park(out[2].ID, "refused")
	b.Release(out[3].ID)
	want(1, 1, "next 10 waiting 7 parked 1 held [{2 3} {5 9}] false lost [] false")
	if frame := b.Oldest(1); string(frame) != string(out[2].Frame) {
		t.Errorf("the oldest is a frame of %d bytes, not number 2", len(frame))
	}
	if b.Oldest(0) != nil || b.Oldest(200) != nil {
		t.Error("an empty lane has an oldest frame")
	}
	// A number that was used up and holds nothing makes the runs an upper bound.
	if err := b.Append([]Item{itemOf(1, 1, 12, 2000)}); err != nil {
		t.Fatal(err)
	}
	want(1, 1, "next 13 waiting 8 parked 1 held [{2 3} {5 12}] true lost [] false")

	// What is given out cannot be withdrawn; what was given back, or never given out, can, once.
	if b.Withdraw(out[5].ID) {
		t.Error("a batch in flight was withdrawn")
	}
	if !b.Withdraw(out[3].ID) || b.Withdraw(out[3].ID) || !b.Withdraw(itemOf(1, 1, 9, 0).ID) {
		t.Error("withdrawing does not go as promised")
	}
	want(1, 1, "next 13 waiting 6 parked 1 held [{2 2} {5 8} {10 12}] true lost [] false")
	rest, err := b.Take(100)
	if err != nil {
		t.Fatal(err)
	}
	var numbers []uint64
	for _, r := range rest {
		numbers = append(numbers, r.ID.Number)
	}
	if fmt.Sprint(numbers) != "[6 7 8 12]" {
		t.Errorf("given out after withdrawing: %v", numbers)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	// After a restart the former epoch is known by what it still holds.
	b = mustOpen(t, c)
	want(1, 1, "next 13 waiting 6 parked 1 held [{2 2} {5 8} {10 12}] true lost [] false")
	if err := b.Append([]Item{itemOf(2, 1, 0, 2000)}); err != nil {
		t.Fatal(err)
	}
	out, err = b.Take(100)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range out {
		b.Ack(o.ID)
	}
	want(1, 1, "next 13 waiting 1 parked 1 held [{2 2} {10 11}] true lost [] false")
	want(2, 1, "next 1 waiting 0 parked 0 held [] false lost [] false")
}

// TestAccountsNameWhatIsLost: a batch whose bytes changed on disk is in the account by its number, before and after its file is set
// aside.
func TestAccountsNameWhatIsLost(t *testing.T) {
	dir := t.TempDir()
	c := testConfig(dir)
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	b, err := open(c)
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint64(6) {
		if err := b.Append([]Item{itemOf(1, 1, n, 9000)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "vitals*.seg"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	frame := frameOf(ID{Epoch: epochOf(1), Lane: 1, Number: 3}, 9000)
	at := bytes.Index(data, frame[100:200])
	data[at] ^= 1
	if err := os.WriteFile(files[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err = open(c); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	out, err := b.Take(100)
	if err != nil || len(out) != 5 {
		t.Fatalf("%d batches, %v", len(out), err)
	}
	if got := account(b, 1, 1); got != "next 6 waiting 5 parked 0 held [{0 2} {4 5}] false lost [{3 3}] false" {
		t.Error(got)
	}
	for _, o := range out {
		b.Ack(o.ID)
	}
	if st := b.Stats(); len(st.Damaged) != 1 {
		t.Fatalf("%+v", st)
	}
	if got := account(b, 1, 1); got != "next 4 waiting 0 parked 0 held [] false lost [{3 3}] false" {
		t.Error(got)
	}
}
