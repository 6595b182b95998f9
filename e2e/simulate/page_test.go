package main

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
)

// TestThePageHasTheCostsFigures: whoever measures anew changes costs.json, and then what the page reckons from it.
func TestThePageHasTheCostsFigures(t *testing.T) {
	text, err := os.ReadFile("../../docs/SCALE.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(text)), " ")
	c, a := costs(t), Load{Batches: 1, Observations: 10}
	each := c.RecordsBatchUS + 10*c.RecordsReadUS
	rate := math.Round(c.recordsRate(a)/100) * 100
	cell := rate * 2 / 3
	for _, says := range []string{
		fmt.Sprintf("| records, CPU | %.0f us a batch of 10 readings |", each),
		fmt.Sprintf("%.0f are a batch's and %.0f those of a message of 10 readings", c.RecordsBatchUS, 10*c.RecordsReadUS),
		fmt.Sprintf("| so, of one core | %.4f %% | (%.0f + %.0f + %.0f) us x 1/s |", (c.IngestBatchUS+1e6/c.LogRows+each)/1e4, c.IngestBatchUS, 1e6/c.LogRows, each),
		fmt.Sprintf("| records | %s batches/s of 10 readings, %s observations/s, on one core; of a backlog in batches of 20 messages %.0f batches/s, %s observations/s | 1 / %.0f us; 1 / (%.0f + 20 x %.0f) us",
			thousands(rate), thousands(10*rate), math.Round(c.recordsRate(Load{1, 200, 0})/10)*10, thousands(math.Round(c.recordsRate(Load{1, 200, 0})/5)*1000), each, c.RecordsBatchUS, 10*c.RecordsReadUS),
		fmt.Sprintf("One core of records settles %s batches/s by the reckoning above: 25,000 / %s = %.1f.", thousands(rate), thousands(rate), 25e3/rate),
		fmt.Sprintf("1,000 monitors are 1,000 batches/s: %.2f of a core of records, %.2f of ingest", each/1e3, c.IngestBatchUS/1e3),
		fmt.Sprintf("One cell takes %s monitors at its very limit, and **%s** with a third to spare", thousands(rate), thousands(cell)),
		fmt.Sprintf("the backlog of %s gateways", thousands(cell)),
		fmt.Sprintf("A cell at A so holds **%s gateways** of one monitor each (%s x 2/3), at B **%s**", thousands(cell), thousands(rate), thousands(math.Floor(60e6/each*2/3/1e4)*1e4)),
		fmt.Sprintf("the cells follow from %s gateways by division", thousands(float64(c.CellSize(a)))),
		fmt.Sprintf("| database | %.0f bytes an observation", c.ObservationByte),
		fmt.Sprintf("| log | %.0f bytes a batch", c.LogByte),
		fmt.Sprintf("| handshake, CPU | %.1f ms |", c.HandshakeMS),
		fmt.Sprintf("| handshakes | %.0f/s of a node |", c.HandshakesNode),
		fmt.Sprintf("| enrolments | %.0f/s of a CA |", c.EnrolmentsCA),
		fmt.Sprintf("| 1,000,000 | %.0f |", math.Ceil(1e6/float64(c.CellSize(a)))),
	} {
		if !strings.Contains(page, says) {
			t.Errorf("docs/SCALE.md does not say, by costs.json: %s", says)
		}
	}
}

// thousands writes a number as the page does.
func thousands(v float64) string {
	text := fmt.Sprintf("%.0f", v)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
