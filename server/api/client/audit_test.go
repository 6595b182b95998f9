package client

import (
	"net/url"
	"testing"
)

func FuzzParseFilter(f *testing.F) {
	f.Add("type=refused&limit=20&newest=true")
	f.Add("limit=-1")
	f.Fuzz(func(t *testing.T, query string) {
		v, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		if filter, err := ParseFilter(v); err == nil && filter.Limit < 0 {
			t.Errorf("limit %d", filter.Limit)
		}
	})
}
