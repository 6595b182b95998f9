package doctor

import (
	"fmt"
	"time"

	"wardlink/agent"
	"wardlink/enroll"
)

// Step is one of what has to be done before the hospital sees a gateway, in that order.
type Step struct {
	Name  string `json:"name"`
	Done  bool   `json:"done"`
	Found string `json:"found"`          // what is, or what is in the way
	Mend  string `json:"mend,omitempty"` // of one that is in the way
}

// Install is what is known of a gateway that is being installed.
type Install struct {
	Report   Report        // of an examination that may be some seconds old; the zero value while there was none
	Status   *agent.Status // of the running agent; nil while none answers
	NoAgent  error         // why
	Seen     enroll.Seen   // the hospital's own word
	SeenFail error         // why there is none
}

// Steps judges. The last step is done once the hospital says that it has opened a heartbeat of the agent's present run.
func (in Install) Steps(now time.Time) []Step {
	steps := []Step{in.looked("configuration", AreaConfiguration), in.looked("kit", AreaKit), in.looked("TPM", agent.AreaTPM), in.server()}
	s := in.Status
	if s == nil {
		found := "the agent does not answer"
		if in.NoAgent != nil {
			found = in.NoAgent.Error()
		}
		return append(steps, Step{Name: "agent", Found: found, Mend: "systemctl start wardlink-agent"},
			Step{Name: "approved"}, Step{Name: "connected"}, Step{Name: "heartbeat"})
	}
	steps = append(steps, Step{Name: "agent", Done: true, Found: fmt.Sprintf("version %s runs for %s", s.Version, agent.Ago(now.Sub(s.Started)))})
	approved := Step{Name: "approved", Done: s.Gateway != "" && !s.Revoked, Found: "as gateway " + s.Gateway}
	if !approved.Done {
		approved.Found = s.Identity
		if s.Waiting != "" {
			approved.Found = "waits under the fingerprint " + s.Waiting
			approved.Mend = "an operator runs: " + enroll.AdmitCommand(s.Waiting, s.Former)
		}
	}
	steps = append(steps, approved)
	connected := Step{Name: "connected", Done: s.Uplink.Connected, Found: "to " + s.Uplink.Server}
	if !connected.Done {
		connected.Found = ""
		if approved.Done {
			connected.Found = "connecting"
		}
		if s.Uplink.LastError != "" && approved.Done {
			connected.Found += ": " + s.Uplink.LastError
		}
	}
	return append(steps, connected, in.heartbeat())
}

// heartbeat is the last step: the hospital's word, not the gateway's.
func (in Install) heartbeat() Step {
	step := Step{Name: "heartbeat"}
	switch {
	case !in.Status.Uplink.Connected:
	case in.SeenFail != nil:
		step.Found = in.SeenFail.Error()
	case in.Seen.Epoch == "" || in.Seen.Epoch != in.Status.Epoch:
		step.Found = "sent; the hospital has not opened one of this start yet"
	default:
		step.Done = true
		step.Found = fmt.Sprintf("the hospital saw the first heartbeat of %s at %s, by its own clock", in.Seen.Gateway, in.Seen.First.UTC().Format("2006-01-02 15:04:05 UTC"))
		if in.Seen.Last.Sub(in.Seen.First) > time.Minute {
			step.Found += ", and the last at " + in.Seen.Last.UTC().Format("2006-01-02 15:04:05 UTC")
		}
	}
	return step
}

// looked is a step that an examination decides: done unless a finding about it stops something.
func (in Install) looked(name, area string) Step {
	step := Step{Name: name}
	for _, f := range in.Report.Findings {
		if f.Area != area {
			continue
		}
		if f.Level == agent.Stops {
			return Step{Name: name, Found: f.Found, Mend: f.Mend}
		}
		if step.Found == "" || f.Level == agent.Warning {
			step.Found = f.Found
		}
		step.Done = true
	}
	return step
}

// server is done when every step to one of the kit's servers is well.
func (in Install) server() Step {
	step := Step{Name: "server"}
	bad := map[string]agent.Finding{}
	var names []string
	for _, f := range in.Report.Findings {
		if f.Area != AreaServer {
			continue
		}
		if len(names) == 0 || names[len(names)-1] != f.Name {
			names = append(names, f.Name)
		}
		if _, known := bad[f.Name]; f.Level == agent.Stops && !known {
			bad[f.Name] = f
		}
	}
	for _, name := range names {
		f, is := bad[name]
		if !is {
			return Step{Name: "server", Done: true, Found: name + " answers, and proves to be the kit's"}
		}
		if step.Found == "" {
			step.Found, step.Mend = name+": "+f.Step+": "+f.Found, f.Mend
		}
	}
	return step
}

// Open is the first step that is not done, or -1.
func Open(steps []Step) int {
	for i, s := range steps {
		if !s.Done {
			return i
		}
	}
	return -1
}
