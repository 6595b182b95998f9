package records

import "wardlink/telemetry"

// SetDecode puts a decoder with a fault in the place of the right one.
func (r *Records) SetDecode(decode func([]byte) (telemetry.Batch, error)) { r.decode = decode }

// WatchQueries are what the watchers of alerts ask every minute.
func WatchQueries() []string { return []string{deadByGateway, backlogQuery} }
