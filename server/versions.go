package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"wardlink/enroll"
	"wardlink/internal/build"
	"wardlink/server/records"
	"wardlink/telemetry"
)

// versioned refuses agents that name only protocol versions which this server does not speak, and tells the others what it speaks. Who
// names none, an agent of version 1 or a stock client, is served and told nothing.
func versioned(next http.Handler, spoken telemetry.Versions, refused func(peer string)) http.Handler {
	own := telemetry.Hello{Versions: spoken, Build: telemetry.OwnHello(build.Version).Build}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said := r.Header.Get(telemetry.HelloHeader)
		if said == "" {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set(telemetry.ServerHeader, own.String())
		agent, err := telemetry.ParseHello(said)
		switch {
		case err != nil:
			refused(r.RemoteAddr)
			problem(w, http.StatusBadRequest, enroll.Problem{Type: enroll.VersionsProblem, Detail: fmt.Sprintf("header %s: %v", telemetry.HelloHeader, err)})
		case agent.Common(spoken) == 0:
			refused(r.RemoteAddr)
			problem(w, http.StatusUpgradeRequired, enroll.Problem{Type: enroll.VersionsProblem, Detail: fmt.Sprintf(
				"this server (%s) speaks protocol versions %s, the agent (%s) %s; install the agent of the server's release, or of one of the two before it", own.Build, spoken, agent.Build, agent.Versions)})
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// agents is the release of each gateway's agent: of the newest report, or what a live session says.
func (s *Server) agents(ctx context.Context) (map[string]string, error) {
	out, err := records.NewStore(s.db, s.keys.Pseudonym).Agents(ctx)
	if err != nil {
		return nil, err
	}
	for _, session := range s.everywhere().Sessions() {
		if session.Agent != "" {
			out[session.Gateway] = session.Agent
		}
	}
	return out, nil
}

func problem(w http.ResponseWriter, status int, p enroll.Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(p) // who has gone needs no answer
}
