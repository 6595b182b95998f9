package audit

import (
	"slices"
	"testing"
)

func list(t *testing.T, m *maker, f Filter) []uint64 {
	t.Helper()
	var numbers []uint64
	for it, err := range List(m.dir, f) {
		if err != nil {
			t.Fatal(err)
		}
		var id EventID
		switch {
		case it.Row != nil:
			id = it.Row.ID
		case it.Window != nil:
			numbers = append(numbers, 1000+it.Window.First)
			continue
		default:
			id = it.Event.ID
		}
		numbers = append(numbers, uint64(id[15])+uint64(id[14])<<8)
	}
	return numbers
}

func TestList(t *testing.T) {
	m := newMaker(t)
	m.event()   // 1
	m.window(3) // 2 to 4
	ev := testEvent(5)
	ev.Type, ev.Target, ev.Actor = GatewayApproved, "gw-2", Actor{ID: "spiffe://ward.example/operator/anna"}
	ev.Outcome, ev.Reason = Denied, "Conflicts with the registry"
	m.pos++
	m.leaf(EncodeEvent(ev))
	m.window(2, func(_ int, r *Row) { r.Gateway = "gw-2" }) // 6, 7
	m.event()                                               // 8
	m.publish()
	at := func(n int64) int64 { return 1_700_000_000_000 + n }
	for _, c := range []struct {
		name string
		f    Filter
		want []uint64
	}{
		{"all", Filter{}, []uint64{1, 1002, 5, 1006, 8}},
		{"publishes", Filter{Publishes: true}, []uint64{1, 2, 3, 4, 5, 6, 7, 8}},
		{"newest", Filter{Newest: true, Publishes: true}, []uint64{8, 7, 6, 5, 4, 3, 2, 1}},
		{"limit", Filter{Limit: 2}, []uint64{1, 1002}},
		{"newest limit", Filter{Limit: 2, Newest: true}, []uint64{8, 1006}},
		{"type", Filter{Type: GatewayApproved, Publishes: true}, []uint64{5}},
		{"windows", Filter{Type: windowType}, []uint64{1002, 1006}},
		{"actor", Filter{Actor: "spiffe://ward.example/operator/anna", Publishes: true}, []uint64{5}},
		{"outcome", Filter{Outcome: Denied, Publishes: true}, []uint64{5}},
		{"reason", Filter{Reason: "conflicts WITH"}, []uint64{5}},
		{"no such reason", Filter{Reason: "revoked", Publishes: true}, nil},
		{"gateway", Filter{Gateway: "gw-2", Publishes: true}, []uint64{5, 6, 7}},
		{"gateway events", Filter{Gateway: "gw-1"}, []uint64{1, 8}},
		{"times", Filter{From: at(3), To: at(6), Publishes: true}, []uint64{3, 4, 5}},
	} {
		if got := list(t, m, c.f); !slices.Equal(got, c.want) {
			t.Errorf("%s: %d; expected %d", c.name, got, c.want)
		}
	}
	m.remove(WindowFile(2, 4, DetailSuffix))
	if got := list(t, m, Filter{Publishes: true}); !slices.Equal(got, []uint64{1, 5, 6, 7, 8}) {
		t.Errorf("rows past their retention: %d", got)
	}
}

func TestListLong(t *testing.T) {
	m := newMaker(t)
	var want []uint64
	for n := range uint64(600) {
		m.event()
		want = append(want, n+1)
	}
	m.publish()
	if got := list(t, m, Filter{}); !slices.Equal(got, want) {
		t.Errorf("forward: %d items", len(got))
	}
	slices.Reverse(want)
	if got := list(t, m, Filter{Newest: true}); !slices.Equal(got, want) {
		t.Errorf("backward: %d items", len(got))
	}
}

func TestListErrors(t *testing.T) {
	m := newMaker(t)
	for _, err := range List(m.dir, Filter{}) {
		if err == nil {
			t.Error("an empty directory was listed")
		}
	}
	m.event()
	m.publish()
	m.remove("tile/entries/000.p/1")
	n := 0
	for _, err := range List(m.dir, Filter{}) {
		if n++; err == nil {
			t.Error("a missing bundle was listed")
		}
	}
	if n != 1 {
		t.Errorf("%d items; expected one error", n)
	}
}
