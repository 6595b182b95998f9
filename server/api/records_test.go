package api_test

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
)

// Dead batches are listed without contents and opened again, each with its event; what is not meant is refused.
func TestDeadBatchesAndReopening(t *testing.T) {
	o := newOffice(t)
	op := o.certificate(spiffe.Operator, "op", domain)
	if err := o.db.Write(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.Exec("INSERT INTO streams (id, gateway, epoch, lane) VALUES (1, 'icu-7', $1, 1)",
			[]byte("\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff")); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO batches (stream, number, frame, sealing, seq, received, state, attempts, due, reason)
			VALUES (1, 7, $1, $2, 5, 1780000000000, 3, 3, 0, 'its seal does not open')`, make([]byte, 32), []byte{}); err != nil {
			return err
		}
		_, err := tx.Exec("INSERT INTO batch_frames (stream, number, frame) VALUES (1, 7, $1)", []byte("secret"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var list client.DeadBatches
	got := o.do(op, "GET", "/v1/records/dead?gateway=icu-7", "", "")
	if err := json.Unmarshal(got.Body.Bytes(), &list); err != nil || list.Total != 1 || len(list.Batches) != 1 {
		t.Fatalf("%d %s", got.Code, got.Body)
	}
	d := list.Batches[0]
	if d.Gateway != "icu-7" || d.Lane != "vitals" || d.Number != 7 || d.Bytes != 6 || !d.Kept || d.Attempts != 3 || d.JournalSeq != 5 || d.Received.Unix() != 1780000000 {
		t.Errorf("%+v", d)
	}
	if strings.Contains(got.Body.String(), "secret") || strings.Contains(got.Body.String(), "c2VjcmV0") {
		t.Error("contents are shown")
	}
	for body, want := range map[string]int{
		`{}`:                  400,
		`{"all":true}`:        400, // whose?
		`{"gateway":"icu-7"}`: 400, // which?
		`{"gateway":"icu-7","all":true,"reason":"seal"}`:                  400,
		`{"gateway":"icu-7","number":"7"}`:                                400, // of which epoch and lane?
		`{"gateway":"icu-7","all":true,"lane":"x"}`:                       400,
		`{"gateway":"icu-7","reason":"` + strings.Repeat("x", 201) + `"}`: 400,
		`{"gateway":"icu-7","reason":"another"}`:                          404,
		`{"gateway":"icu-8","all":true}`:                                  404,
	} {
		if got := o.do(op, "POST", "/v1/records/reopen", "application/json", body); got.Code != want {
			t.Errorf("%s: %d %s; expected %d", body, got.Code, got.Body, want)
		}
	}
	for _, gateway := range []string{"Mrs+Miller", "icu-7%0A", strings.Repeat("x", 5000)} {
		if got := o.do(op, "GET", "/v1/records/dead?gateway="+gateway, "", ""); got.Code != 400 {
			t.Errorf("gateway %.20q: %d %.100s", gateway, got.Code, got.Body)
		}
	}
	var r client.Reopening
	got = o.do(op, "POST", "/v1/records/reopen", "application/json", fmt.Sprintf(`{"gateway":"icu-7","epoch":%q,"lane":"vitals","number":"7"}`, d.Epoch))
	if err := json.Unmarshal(got.Body.Bytes(), &r); err != nil || r.Batches != 1 || r.Pending != 1 {
		t.Fatalf("%d %s", got.Code, got.Body)
	}
	if got := o.do(op, "GET", fmt.Sprintf("/v1/records/reopen/%d", r.ID), "", ""); got.Code != 200 || !strings.Contains(got.Body.String(), `"pending":1`) {
		t.Errorf("%d %s", got.Code, got.Body)
	}
	for _, n := range []string{"99", "x"} {
		if got := o.do(op, "GET", "/v1/records/reopen/"+n, "", ""); got.Code == 200 {
			t.Errorf("reopening %s: %s", n, got.Body)
		}
	}
	if got := o.events(); !strings.Contains(got, "batches.read icu-7 success") || strings.Count(got, "batch.reopened icu-7 success") != 1 {
		t.Error(got)
	}
}
