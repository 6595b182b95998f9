package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"wardlink/internal/child"
	"wardlink/server/ca"
)

// againstList has openssl verify a chain of our server, and look for it in the list of revoked certificates that our server gives now.
func (s *stage) againstList(chain string) (string, error) {
	client, err := s.client()
	if err != nil {
		return "", err
	}
	answer, err := client.Get("https://" + s.ours() + ca.ListPath)
	if err != nil {
		return "", err
	}
	der, err := io.ReadAll(answer.Body)
	if err = errors.Join(err, answer.Body.Close()); err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the list: %s %s", answer.Status, der)
	}
	if err := os.WriteFile(s.file("list.pem"), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o600); err != nil {
		return "", err
	}
	return s.openssl(s.file("server/public/root.crt"), chain, "-crl_check", "-CRLfile", s.file("list.pem"))
}

// revoked revokes a gateway and waits until openssl refuses its chain: a list is some seconds old.
func (s *stage) revoked(gateway, chain string) (string, error) {
	if err := s.operator("gateway", "revoke", gateway, "--reason", "stolen"); err != nil {
		return "", err
	}
	var said string
	var verdict error
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	err := child.Until(ctx, "the list", s.watch, func(context.Context) (bool, error) {
		said, verdict = s.againstList(chain)
		return verdict != nil && strings.Contains(verdict.Error(), "revoked"), nil
	})
	return said, errors.Join(verdict, err)
}
