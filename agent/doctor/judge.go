package doctor

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wardlink/agent"
	"wardlink/agent/source"
	"wardlink/buffer"
	"wardlink/enroll"
	"wardlink/internal/build"
	"wardlink/internal/durable"
	"wardlink/internal/listener"
	"wardlink/internal/spiffe"
)

// errDenied is met by a user who may not look.
var errDenied = fs.ErrPermission

// asRoot is the mend for who may not look.
const asRoot = "run this as root or as the agent's user"

// judgeCertificate judges the kept certificate, without asking whose key it is for: that takes the TPM.
func judgeCertificate(chain []*x509.Certificate, err error, kit enroll.Kit, now time.Time) []agent.Finding {
	finding := func(level agent.Level, mend, found string, args ...any) []agent.Finding {
		return []agent.Finding{{Area: AreaCertificate, Level: level, Found: fmt.Sprintf(found, args...), Mend: mend}}
	}
	switch {
	case errors.Is(err, enroll.ErrNone):
		return finding(agent.Stops, "let the agent enrol: it needs the TPM, the server, and an operator's approval where the TPM is not registered yet", "there is none: this gateway was never enrolled")
	case errors.Is(err, fs.ErrPermission):
		return finding(agent.Warning, asRoot, "it cannot be read: %v", err)
	case err != nil:
		return finding(agent.Warning, "the agent enrols anew by itself when it starts", "it cannot be read: %v", err)
	}
	leaf := chain[0]
	id, err := spiffe.FromCertificate(leaf)
	if err != nil || id.Kind != spiffe.Gateway {
		return finding(agent.Stops, "remove identity.pem from the directory identity; the agent enrols anew", "it names no gateway: %v", err)
	}
	if id.TrustDomain != kit.TrustDomain {
		return finding(agent.Stops, "use the kit of the hospital that this gateway belongs to, or remove the directory identity and enrol anew", "it is of %s, the kit of %s", id, kit.TrustDomain)
	}
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	// At its own time: whether it has begun or ended is said apart, in plainer words.
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: kit.Pool(), Intermediates: inter, CurrentTime: leaf.NotBefore.Add(time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return finding(agent.Stops, "put the present kit on this gateway; if the hospital's root is new, remove the directory identity and enrol anew", "%s, but its chain does not end in a root of the kit: %v", id, err)
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	renew := leaf.NotBefore.Add(life / 2)
	switch {
	case now.After(leaf.NotAfter):
		return finding(agent.Stops, "it renews itself once the server can be reached; if this gateway's clock is ahead, set it", "%s ended %s ago, by this gateway's clock", id, agent.Ago(now.Sub(leaf.NotAfter)))
	case now.Before(leaf.NotBefore):
		return finding(agent.Stops, "this gateway's clock is behind: set it, and have NTP keep it", "%s begins only in %s, by this gateway's clock", id, agent.Ago(leaf.NotBefore.Sub(now)))
	case now.After(leaf.NotBefore.Add(life * 3 / 4)):
		return finding(agent.Warning, "see the steps to the server and the TPM; at its end the gateway is cut off until it can renew", "%s ends in %s, and its renewal has been due for %s", id, agent.Ago(leaf.NotAfter.Sub(now)), agent.Ago(now.Sub(renew)))
	}
	return finding(agent.Well, "", "%s, until %s; it is renewed from %s on", id, leaf.NotAfter.UTC().Format(time.RFC3339), renew.UTC().Format(time.RFC3339))
}

// floorOf is an instant that has passed for certain: what the gateway holds was made then.
func floorOf(kit enroll.Kit, chain []*x509.Certificate) (floor time.Time) {
	for _, c := range append(append([]*x509.Certificate(nil), kit.Roots...), chain...) {
		if c.NotBefore.After(floor) {
			floor = c.NotBefore
		}
	}
	return floor
}

// offset is how far a server's clock is ahead of ours, to the second.
type offset struct {
	server string
	ahead  time.Duration
}

func offsets(reaches []reach) (out []offset) {
	for _, r := range reaches {
		if !r.date.IsZero() {
			out = append(out, offset{r.server, r.ahead})
		}
	}
	return out
}

// How far the clock may be from the server's. The times of readings are mended by what the server sees; certificates live for a day.
const (
	offNoted   = 5 * time.Second
	offHarmful = time.Hour
)

// judgeClock compares the clock with what is known of the time. A connection that stands shows that certificates are believed.
func judgeClock(now time.Time, kernel agent.KernelClock, floor time.Time, servers []offset, connected bool) agent.Finding {
	f := agent.Finding{Area: agent.AreaClock, Level: agent.Well}
	harmful := agent.Stops
	if connected {
		harmful = agent.Warning
	}
	text := now.UTC().Format("2006-01-02 15:04:05 UTC")
	worst := offset{}
	for _, o := range servers {
		if o.ahead.Abs() >= worst.ahead.Abs() {
			worst = o
		}
	}
	side := "behind"
	if worst.ahead < 0 {
		side = "ahead of"
	}
	switch {
	case now.Before(floor):
		f.Level, f.Found, f.Mend = harmful, fmt.Sprintf("it shows %s, but certificates on this gateway were made %s later", text, agent.Ago(floor.Sub(now))),
			"set it ('timedatectl set-time'), have NTP keep it, and see the battery of the real-time clock"
	case worst.ahead.Abs() >= offHarmful:
		f.Level, f.Found, f.Mend = harmful, fmt.Sprintf("it shows %s, %s %s the clock of %s", text, agent.Ago(worst.ahead.Abs()), side, worst.server),
			"certificates look expired or not yet valid: set it, and have NTP keep it"
	case worst.ahead.Abs() >= offNoted:
		f.Level, f.Found, f.Mend = agent.Warning, fmt.Sprintf("it shows %s, %s %s the clock of %s", text, agent.Ago(worst.ahead.Abs()), side, worst.server),
			"have NTP keep it (chrony, systemd-timesyncd); times of readings that devices give themselves are not touched by this"
	case !kernel.Synchronised && len(servers) > 0:
		f.Found = fmt.Sprintf("%s; it agrees with %s, although nothing keeps it (no NTP)", text, worst.server)
	case !kernel.Synchronised:
		f.Level, f.Found, f.Mend = agent.Warning, text+"; nothing keeps it, and no server tells whether it is right", "set up chrony or systemd-timesyncd, and let NTP (UDP 123) through"
	default:
		f.Found = fmt.Sprintf("%s, synchronised to within %s", text, kernel.MaxError.Round(time.Millisecond))
		if len(servers) > 0 {
			f.Found += ", and agrees with " + worst.server
		}
	}
	return f
}

// judgeServers puts the steps to each server together with whether it believes the gateway. The agent tries the servers in turn, so
// one that works makes the failure of another a warning.
func judgeServers(reaches []reach, p patient, kit enroll.Kit, now time.Time) []agent.Finding {
	var out []agent.Finding
	works := p.connected()
	for _, r := range reaches {
		steps := r.judge(kit, now)
		if agent.Worst(steps) != agent.Stops {
			for _, f := range p.authorised {
				if f.Name == r.server {
					f.Area, f.Step = AreaServer, "authorisation"
					steps = append(steps, f)
				}
			}
		}
		if p.connected() && p.status.Uplink.Server == r.server {
			steps = append(steps, agent.Finding{Area: AreaServer, Name: r.server, Step: "in use", Level: agent.Well, Found: "the running agent's connection goes to it"})
		}
		works = works || agent.Worst(steps) != agent.Stops
		out = append(out, steps...)
	}
	for i := range out {
		if works && out[i].Level == agent.Stops {
			out[i].Level = agent.Warning
			out[i].Mend += "; meanwhile another way works"
		}
	}
	return out
}

// judgeBuffer judges the files of an agent that does not run.
func judgeBuffer(r buffer.Report, err error, cfg agent.Config) []agent.Finding {
	f := agent.Finding{Area: agent.AreaBuffer, Level: agent.Well}
	_, statErr := os.Stat(filepath.Join(cfg.State, "identity", "identity.pem"))
	switch {
	case errors.Is(err, buffer.ErrMissing) && statErr == nil:
		f.Level, f.Found, f.Mend = agent.Stops, "it is gone, although this gateway was enrolled: "+err.Error(), "bring it back; or, to begin anew without what was in it, remove "+cfg.State
	case errors.Is(err, buffer.ErrMissing):
		f.Found = "there is none yet; the agent makes it at its first start"
	case errors.Is(err, fs.ErrPermission):
		f.Level, f.Found, f.Mend = agent.Warning, err.Error(), asRoot
	case errors.Is(err, durable.ErrNewer):
		f.Level, f.Found, f.Mend = agent.Stops, err.Error(), "this is agent "+build.Version+"; what is kept is left as it is until the newer one runs again"
	case err != nil:
		f.Level, f.Found, f.Mend = agent.Stops, err.Error(), "see the disk (dmesg)"
	case len(r.Findings) > 0:
		f.Level, f.Found = agent.Warning, fmt.Sprintf("%s, the first in %s: %s", agent.Count(len(r.Findings), "finding"), r.Findings[0].Path, r.Findings[0].Problem)
		f.Mend = "'wardlink-agent buffer check' lists them; what can be read is sent, damaged files are set aside and kept"
	default:
		var waiting, parked uint64
		for _, l := range r.Lanes {
			waiting, parked = waiting+l.Batches-l.Acked-min(l.Parked, l.Batches-l.Acked), parked+l.Parked
		}
		size, _ := cfg.BufferCap() // it was checked with the configuration
		f.Found = fmt.Sprintf("%s to send, %d parked; %s of %s on disk", agent.Count(waiting, "batch"), parked, agent.Size(r.Disk), agent.Size(size))
		if len(r.Damaged) > 0 {
			f.Level, f.Found = agent.Warning, f.Found+"; set aside as damaged: "+agent.Count(len(r.Damaged), "file")
			f.Mend = "keep them for analysis, then move them elsewhere; their room counts"
		}
	}
	return []agent.Finding{f}
}

// diskOf judges the file system of the state directory, or of where it will be.
func diskOf(cfg agent.Config) agent.Finding {
	path := cfg.State
	for {
		d, err := agent.DiskAt(path)
		if err == nil {
			return d.Examine(cfg.State, 0)
		}
		up := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || up == path {
			return agent.Finding{Area: agent.AreaDisk, Level: agent.Warning, Found: fmt.Sprintf("%s: %v", path, err), Mend: "see 'state:' in the configuration"}
		}
		path = up
	}
}

// judgePorts looks who has the ports of an agent that does not run.
func judgePorts(cfg agent.Config, unseen bool) (out []agent.Finding) {
	for _, s := range cfg.Sources {
		if s.Socket != "" {
			continue // a socket has no port that another program could have
		}
		f := agent.Finding{Area: agent.AreaSource, Name: s.ID, Level: agent.Well, Found: s.MLLP + " is free"}
		ln, err := listener.Listen(s.MLLP)
		if err == nil {
			ln.Close()
		} else if unseen && errors.As(err, new(*listener.Taken)) {
			f.Level, f.Found, f.Mend = agent.Warning, s.MLLP+" is taken: by the agent, or by another program", asRoot
		} else {
			f.Level, f.Found, f.Mend = agent.Stops, "devices will not be able to connect: "+source.Explain(s.MLLP, err).Error(), "the other sources and the connection do not depend on it"
		}
		if t := s.Secure(); t != nil && f.Level == agent.Well {
			if err := t.Examine(time.Now()); err != nil {
				f.Level, f.Found, f.Mend = agent.Stops, "devices will not be able to connect: "+err.Error(), "the other sources and the connection do not depend on it"
			} else {
				f.Found += ", and its certificate can be used"
			}
		}
		out = append(out, f)
	}
	return out
}

// judgeMode says when others could change a file that decides whom this gateway trusts.
func judgeMode(path, area string) []agent.Finding {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o022 == 0 {
		return nil
	}
	return []agent.Finding{{Area: area, Level: agent.Warning, Found: fmt.Sprintf("%s can be changed by others (mode %04o)", path, info.Mode().Perm()), Mend: "chmod go-w " + path}}
}

// judgeState looks at owners and modes below the state directory, and whether this user could write there.
func judgeState(dir string) (out []agent.Finding) {
	finding := func(level agent.Level, mend, found string, args ...any) {
		out = append(out, agent.Finding{Area: AreaFiles, Level: level, Found: fmt.Sprintf(found, args...), Mend: mend})
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		finding(agent.Warning, "the agent makes it at its first start, where it may", "%s does not exist yet", dir)
		return out
	case errors.Is(err, fs.ErrPermission):
		finding(agent.Warning, asRoot, "%v", err)
		return out
	case err != nil:
		finding(agent.Stops, "see the disk (dmesg)", "%v", err)
		return out
	case !info.IsDir():
		finding(agent.Stops, "'state:' in the configuration must name a directory of the agent's own", "%s is no directory", dir)
		return out
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		finding(agent.Warning, "chmod 700 "+dir, "%s is open to others (mode %04o)", dir, perm)
	}
	owner := ownerOf(info)
	out = append(out, judgeFiles(dir, owner)...)
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil && owner == uint32(os.Geteuid()) {
		finding(agent.Stops, "mount it for writing (mount -o remount,rw), or see its modes", "%s cannot be written: %v", dir, err)
	}
	if len(out) == 0 {
		finding(agent.Well, "", "%s and what is in it belong to user %d alone", dir, owner)
	}
	return out
}

// judgeFiles looks for files that the agent's user, the owner of the state directory, could not use.
func judgeFiles(dir string, owner uint32) (out []agent.Finding) {
	var foreign, locked []string
	walk(dir, func(path string, info fs.FileInfo) {
		if ownerOf(info) != owner {
			foreign = append(foreign, path)
		}
		want := fs.FileMode(0o600)
		if info.IsDir() {
			want = 0o700
		}
		if (info.IsDir() || info.Mode().IsRegular()) && info.Mode().Perm()&want != want {
			locked = append(locked, path)
		}
	})
	stops := func(mend, found string, args ...any) {
		out = append(out, agent.Finding{Area: AreaFiles, Level: agent.Stops, Found: fmt.Sprintf(found, args...), Mend: mend})
	}
	if len(foreign) > 0 {
		stops(fmt.Sprintf("chown -R --reference=%s %s", dir, dir), "of another user than %s itself: %s, the first is %s; most often somebody ran the agent as root",
			dir, agent.Count(len(foreign), "file"), foreign[0])
	}
	if len(locked) > 0 {
		stops("chmod -R u+rwX "+dir, "not writable by the owner: %s, the first is %s", agent.Count(len(locked), "file"), locked[0])
	}
	return out
}

// walk visits the state directory and the first few thousand files in it; a directory that this user may not read is passed over.
func walk(dir string, visit func(path string, info fs.FileInfo)) {
	left := 4096
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir
		}
		if left--; left < 0 {
			return fs.SkipAll
		}
		// The socket's mode is its own, and a file may vanish while we look.
		if info, err := d.Info(); err == nil && info.Mode()&fs.ModeSocket == 0 {
			visit(path, info)
		}
		return nil
	})
}

func ownerOf(info fs.FileInfo) uint32 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Uid
	}
	return 0
}

// judgeCores looks whether a crash of the running agent would leave its memory on disk: the sealing key, and messages under way.
func judgeCores(pid int) []agent.Finding {
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return nil // another user's process, or one that ended
	}
	for _, line := range strings.Split(string(limits), "\n") {
		rest, ok := strings.CutPrefix(line, "Max core file size")
		if !ok {
			continue
		}
		if fields := strings.Fields(rest); len(fields) > 0 && fields[0] != "0" {
			return []agent.Finding{{Area: AreaAgent, Level: agent.Warning, Found: "a crash would leave a core dump, which can hold messages under way", Mend: "start the agent by 'wardlink-agent run', which switches core dumps off, and leave its limits alone"}}
		}
	}
	return nil
}
