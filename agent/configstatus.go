package agent

import (
	"fmt"
	"strings"
	"time"

	"wardlink/telemetry"
)

// ConfigStatus is what the agent holds of the hospital's signed configuration.
type ConfigStatus struct {
	Version     uint64        `json:"version"` // of this gateway's own document that is in force; 0: none
	Site        string        `json:"site,omitempty"`
	SiteVersion uint64        `json:"site_version,omitempty"` // of the site's document in force; 0: none
	Servers     []string      `json:"servers"`                // those to try now, in their order
	ReportEvery string        `json:"report_every"`
	Trial       *ConfigChange `json:"trial,omitempty"`    // under way: prepared, or applied
	Reverted    *ConfigChange `json:"reverted,omitempty"` // the last document of its kind that came, where it was taken back
}

// ConfigChange is one document on its way, or taken back.
type ConfigChange struct {
	Site    string    `json:"site,omitempty"` // "" for the gateway's own
	Version uint64    `json:"version"`
	Step    string    `json:"step"`
	At      time.Time `json:"at"` // by the gateway's clock
	Reason  string    `json:"reason,omitempty"`
}

func (c *ConfigChange) name() string {
	if c.Site != "" {
		return fmt.Sprintf("version %d of site %s", c.Version, c.Site)
	}
	return fmt.Sprintf("version %d", c.Version)
}

// String is one line for people.
func (c ConfigStatus) String() string {
	text := "none yet: the kit and the file hold"
	if c.Version > 0 {
		text = fmt.Sprintf("version %d", c.Version)
	}
	if c.SiteVersion > 0 {
		text += fmt.Sprintf(", version %d of site %s", c.SiteVersion, c.Site)
	}
	if c.Trial != nil {
		text += fmt.Sprintf("; %s is %s", c.Trial.name(), c.Trial.Step)
	}
	return text + "; servers " + strings.Join(c.Servers, ", ")
}

func (a *Agent) configStatus() ConfigStatus {
	r, _ := a.config.report()
	c := ConfigStatus{
		Version: a.config.inForce().Version, Site: r.Site, SiteVersion: r.Version, Servers: a.servers(), ReportEvery: a.reports.interval().String(),
	}
	last := map[string]telemetry.ConfigStep{} // of each document the newest version's last step
	for _, s := range r.Steps {
		if s.Version >= last[s.Site].Version {
			last[s.Site] = s
		}
	}
	for _, s := range last {
		one := &ConfigChange{Site: s.Site, Version: s.Version, Step: s.Step.String(), At: time.UnixMilli(s.At), Reason: s.Reason}
		switch s.Step {
		case telemetry.ConfigPrepared, telemetry.ConfigApplied:
			c.Trial = one
		case telemetry.ConfigReverted:
			if c.Reverted == nil || c.Reverted.At.Before(one.At) {
				c.Reverted = one
			}
		}
	}
	return c
}

// examineConfig judges what became of the hospital's configuration. One that was taken back stops nothing: the one before is in force.
func (s Status) examineConfig() Finding {
	f := Finding{Area: AreaSettings, Level: Well, Found: s.Settings.String()}
	if r := s.Settings.Reverted; r != nil {
		f.Level, f.Found = Warning, fmt.Sprintf("%s was taken back: %s; %s", r.name(), r.Reason, s.Settings)
		f.Mend = "see that its servers can be reached from here; an operator corrects them ('wardlink config set') or has it tried again ('wardlink config retry')"
	}
	return f
}
