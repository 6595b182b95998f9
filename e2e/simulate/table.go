package main

import (
	"fmt"
	"time"
)

const header = "gateways  cells nodes cores  conn.MB  GB/day | renewals/s  handshakes/s  refused | back after  drained after  caught up | records lag  alarm ms | took\n" +
	"           all per cell, each        all      | most, of a cell                | after the outage, of a cell           | longest, of a cell    |\n"

const legend = `back after      the last gateway is connected; goal: within its number / (handshakes_node x nodes) + backoff_most_s
drained after   no gateway has a backlog: all is durable at the server
caught up       and records and the log have settled all of it: it can be seen
records lag     age of what records settle; 0 while the outage is not, or the cell is too large for its records worker
alarm ms        from a connected gateway's alarm to its PUBACK, behind what is in flight of those that have one too; goal: <= 1000
cores           of one cell, by its live load alone: ingest nodes, the records worker, the log's writer`

// print is one line of the table.
func (r *Result) print(gateways, cells, nodes int, took time.Duration) {
	fmt.Printf("%8d %6d %5d %5.1f %8.0f %7.1f | %10.0f %13.0f %8d | %10s %14s %10s | %11s %9.0f | %s\n",
		gateways, cells, nodes, r.Cores, r.MemoryMB*float64(cells), r.DiskGBDay*float64(cells), r.Enrolments, r.Handshakes, r.Refused,
		span(r.BackAfter), span(r.DrainAfter), span(r.CaughtUp), span(r.RecordsLag), r.AlarmMS, took.Round(time.Millisecond))
}

// span writes seconds; a 0 is what did not come to be within the time.
func span(s float64) string {
	switch {
	case s == 0:
		return "-"
	case s < 120:
		return fmt.Sprintf("%.0f s", s)
	case s < 7200:
		return fmt.Sprintf("%.0f min", s/60)
	}
	return fmt.Sprintf("%.1f h", s/3600)
}
