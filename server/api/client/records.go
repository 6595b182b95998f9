package client

import (
	"net/url"
	"time"
)

// BatchFilter chooses dead batches; empty fields choose all.
type BatchFilter struct {
	Gateway string `json:"gateway,omitempty"`
	Epoch   string `json:"epoch,omitempty"`
	Lane    string `json:"lane,omitempty"`
	Number  string `json:"number,omitempty"`
	Reason  string `json:"reason,omitempty"` // part of the reason
}

// Query is the filter as a URL's query.
func (f BatchFilter) Query() url.Values {
	v := url.Values{}
	for key, value := range map[string]string{"gateway": f.Gateway, "epoch": f.Epoch, "lane": f.Lane, "number": f.Number, "reason": f.Reason} {
		if value != "" {
			v.Set(key, value)
		}
	}
	return v
}

// DeadBatch is a batch that could not be opened; its contents are not shown to anybody.
type DeadBatch struct {
	Gateway    string    `json:"gateway"`
	Epoch      string    `json:"epoch"`
	Lane       string    `json:"lane"`
	Number     uint64    `json:"number"`
	Reason     string    `json:"reason"`
	Received   time.Time `json:"received"`
	Attempts   int       `json:"attempts"`
	Bytes      int64     `json:"bytes"`
	Frame      string    `json:"frame_sha256"`
	JournalSeq uint64    `json:"journal_seq"`
	Kept       bool      `json:"kept"` // in the database; else in the journal only, for the journal's retention
}

// DeadBatches is a list of them.
type DeadBatches struct {
	Batches []DeadBatch `json:"batches"`
	Total   int64       `json:"total"` // how many match, listed or not
}

// ReopenRequest has dead batches of one gateway tried again: one by epoch, lane and number, those of a reason, or all.
type ReopenRequest struct {
	BatchFilter
	All bool `json:"all,omitempty"`
}

// Reopening is how far that is.
type Reopening struct {
	ID       int64     `json:"id"`
	Batches  int64     `json:"batches"`
	NoRoom   int64     `json:"no_room"` // left dead: their frames are in the journal only, and the gateway's room is full
	Gone     int64     `json:"gone"`    // left dead: the journal has their frames no longer
	Stored   int64     `json:"stored"`
	Pending  int64     `json:"pending"`
	Dead     int64     `json:"dead"` // dead again
	Outcomes []Outcome `json:"outcomes"`
}

// Outcome counts the pending and dead ones by reason; an empty reason is that of one which was not tried yet.
type Outcome struct {
	State  string `json:"state"`
	Reason string `json:"reason"`
	Count  int64  `json:"count"`
}

// Retention is what the server keeps and since when.
type Retention struct {
	Classes      []Class `json:"classes"`
	Suspended    bool    `json:"suspended"` // nothing is disposed of: the server's clock moved too far to be believed
	DriftSeconds int64   `json:"drift_seconds"`
}

// Class is what is disposed of together.
type Class struct {
	Class     string     `json:"class"`
	KeepHours int64      `json:"keep_hours"`
	Oldest    *time.Time `json:"oldest"`   // received; null when nothing is kept
	Checked   *time.Time `json:"checked"`  // end of the last run
	Disposal  *time.Time `json:"disposal"` // when anything was last disposed of
	Disposed  int64      `json:"disposed"` // items in all
}
