package ca

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
)

// The list of revoked certificates (RFC 5280, 5) is for others who meet certificates of this hospital. Nothing of wardlink's reads it: the registry alone
// decides, so a list that has ended, cannot be had or is damaged locks nobody out and lets nobody in (decisions/0044).
const (
	ListPath = "/crl"           // on the gateways' port
	listLife = 24 * time.Hour   // until its nextUpdate: who insists on a list gets through a day without this server, as gateways' certificates do
	listAge  = 10 * time.Second // so long one list is given to everybody
	listRest = 2 * time.Second  // so long nobody tries again after one could not be made
	listTime = 20 * time.Second // that making one may take
	// listPatience is how long who has an older list waits for the new one.
	listPatience = time.Second
	maxListed    = 100_000 // certificates; a list of so many has some 4 MB
)

// lists keeps the newest list, and makes one at a time for all who ask.
type lists struct {
	making singleflight.Group
	newest atomic.Pointer[list]
	failed atomic.Pointer[failure] // nil: not since the newest
}

// failure is the newest of so many lists in a row that could not be made.
type failure struct {
	at    time.Time
	times int
}

type list struct {
	der  []byte
	made time.Time
	by   *x509.Certificate
}

// serveList answers GET /crl. One that was made stays good until its nextUpdate, whatever cannot be asked meanwhile.
func (c *CA) serveList(w http.ResponseWriter, r *http.Request) {
	l := c.list(r.Context())
	if l == nil {
		w.Header().Set("Retry-After", "10")
		c.refuse(w, r, http.StatusServiceUnavailable, "unavailable", "the list of revoked certificates cannot be made now")
		return
	}
	w.Header().Set("Content-Type", "application/pkix-crl") // RFC 2585, 4.2
	_, _ = w.Write(l.der)
}

// list gives a list that has not ended, a new one where that can be had; nil when there is none. It is made for all, by the server's leave and not by that of
// whoever asked first and may hang up; where that takes long, an older one is given meanwhile. So a flood costs what is sent, also while none can be made.
func (c *CA) list(ctx context.Context) *list {
	now := c.cfg.Now()
	good := func() *list {
		if l := c.lists.newest.Load(); l != nil && now.Sub(l.made).Abs() < listLife {
			return l
		}
		return nil
	}
	l, failed := good(), c.lists.failed.Load()
	if l != nil && now.Sub(l.made).Abs() < listAge && l.by == c.Issuer() || failed != nil && failed.times > 1 && now.Sub(failed.at).Abs() < listRest {
		return l
	}
	made := c.lists.making.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), listTime)
		defer cancel()
		one, err := c.makeList(ctx, now)
		if err != nil {
			c.cfg.Log.Error("the list of revoked certificates cannot be made; gateways are admitted and cut off as ever", "error", err)
			again := &failure{at: now, times: 1}
			if before := c.lists.failed.Load(); before != nil {
				again.times += before.times
			}
			c.lists.failed.Store(again)
			return nil, err
		}
		c.lists.newest.Store(one)
		c.lists.failed.Store(nil)
		return nil, nil
	})
	patience := (<-chan time.Time)(nil)
	if l != nil {
		patience = time.After(listPatience)
	}
	select {
	case <-made:
	case <-patience:
	case <-ctx.Done():
	}
	return good()
}

// makeList signs a list of all certificates that are withdrawn before their end, by the issuing CA in use. Certificates of the one before it are in it, too, but
// verifiers look for a list of the certificate's own issuer, whose key is destroyed: a gateway's next certificate, within a day, is of the present one.
func (c *CA) makeList(ctx context.Context, now time.Time) (*list, error) {
	if c.cfg.Withdrawn == nil {
		return nil, fmt.Errorf("this CA is not told what is withdrawn")
	}
	entries, err := c.cfg.Withdrawn(ctx, maxListed)
	if err != nil {
		return nil, err
	}
	by := c.issuer.Load()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		RevokedCertificateEntries: entries,
		Number:                    big.NewInt(now.UnixMilli()), // it grows, whichever process of the CA makes it
		ThisUpdate:                now.Add(-backdate), NextUpdate: now.Add(listLife),
	}, by.cert, by.key)
	if err != nil {
		return nil, fmt.Errorf("sign the list: %w", err)
	}
	return &list{der: der, made: now, by: by.cert}, nil
}
