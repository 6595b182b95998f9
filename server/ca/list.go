package ca

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// The list of revoked certificates (RFC 5280, 5) is for others who meet certificates of this hospital. Nothing of wardlink's reads it: the registry alone
// decides, so a list that has ended, cannot be had or is damaged locks nobody out and lets nobody in (decisions/0044).
const (
	ListPath  = "/crl"           // on the gateways' port
	listLife  = 24 * time.Hour   // until its nextUpdate: who insists on a list gets through a day without this server, as gateways' certificates do
	listAge   = 10 * time.Second // so long one list is given to everybody
	maxListed = 100_000          // certificates; a list of so many has some 4 MB
)

// lists keeps the newest list.
type lists struct {
	making sync.Mutex
	newest atomic.Pointer[list]
}

type list struct {
	der  []byte
	made time.Time
	by   *x509.Certificate
}

// serveList answers GET /crl. One request at a time makes a list, and the others are given the one before: a flood costs what is sent. One that was made
// stays good until its nextUpdate, whatever cannot be asked meanwhile.
func (c *CA) serveList(w http.ResponseWriter, r *http.Request) {
	now := c.cfg.Now()
	l := c.lists.newest.Load()
	if (l == nil || now.Sub(l.made).Abs() >= listAge || l.by != c.Issuer()) && c.lists.making.TryLock() {
		made, err := c.makeList(r.Context(), now)
		if err == nil {
			c.lists.newest.Store(made)
			l = made
		} else {
			c.cfg.Log.Error("the list of revoked certificates cannot be made; gateways are admitted and cut off as ever", "error", err)
		}
		c.lists.making.Unlock()
	}
	if l == nil || now.Sub(l.made).Abs() >= listLife {
		w.Header().Set("Retry-After", "10")
		c.refuse(w, r, http.StatusServiceUnavailable, "unavailable", "the list of revoked certificates cannot be made now")
		return
	}
	w.Header().Set("Content-Type", "application/pkix-crl") // RFC 2585, 4.2
	_, _ = w.Write(l.der)
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
