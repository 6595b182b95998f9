package registry

import (
	"fmt"
	"slices"
)

// Role is what an operator may do. Which acts that are says the table of the operators' API (server/api, roles.go).
type Role string

// The roles.
const (
	Admin   Role = "admin"    // everything, also who else may do what
	Operate Role = "operator" // gateways, their configuration, alerts, salvage
	Auditor Role = "auditor"  // looks at everything, the log of accesses and all identities among it; changes nothing
	Viewer  Role = "viewer"   // looks at gateways, alerts and figures
)

// Roles are all of them.
func Roles() []Role { return []Role{Admin, Operate, Auditor, Viewer} }

// CheckRole says what is wrong with a role and how to mend it.
func CheckRole(r Role) error {
	if !slices.Contains(Roles(), r) {
		return fmt.Errorf("role %.40q is unknown; expected one of %s", r, joined(Roles()))
	}
	return nil
}
