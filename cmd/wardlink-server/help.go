package main

// helps has of each command, by the name of its flags: how it is called, what it does, examples.
var helps = map[string]string{
	"wardlink-server init": `
wardlink-server init --dir DIR [--trust-domain DOMAIN] [--name HOST]... [--ek-trust FILE]... [--database URL [--services LIST]]
       wardlink-server init --dir DIR --confirm-recovery [--passphrase-file FILE]

Makes a new server's directory: keys, recovery file, configuration, empty stores, and the first operator's file. The recovery passphrase is
shown once. With --database the stores are in an empty PostgreSQL database, and services may run in several processes. With --confirm-recovery
it makes nothing: it proves that the recovery file of a server opens with the passphrase, and notes that.

  wardlink-server init --dir ./hospital --name localhost
  wardlink-server init --dir /srv/wardlink --trust-domain ward.hospital.example --name wardlink.hospital.example --ek-trust vendor-roots.pem
  wardlink-server init --dir /srv/wardlink --name wardlink.hospital.example --database 'postgres://wardlink@db.hospital.example/wardlink' \
      --database-password-file ./password --services ca,records,log,api
  wardlink-server init --dir /srv/wardlink --confirm-recovery
`,
	"wardlink-server run": `
wardlink-server run --dir DIR [--services LIST] [--gateways ADDRESS]

Serves gateways, the hospital and operators, at the addresses of DIR/server.yaml, until SIGTERM. It reads that file at its start. On PostgreSQL a
process may run some services alone: api with any of the others; ca, in any number of processes; records, log or both, as a standby. On an ingest
node's directory it runs ingest.

  wardlink-server run --dir /srv/wardlink
  wardlink-server run --dir /srv/wardlink --services ca,records,log,api
  wardlink-server run --dir /srv/wardlink --services ca --gateways :8885 # beside a process without ca; 'node add --services ca' makes more
  wardlink-server run --dir /srv/wardlink --services records,log         # stands by, and goes on when the first process dies
  wardlink-server run --dir /srv/wardlink-node
`,
	"wardlink-server node add": `
wardlink-server node add --dir DIR --name NODE --out NODEDIR [--host HOST]... [--gateways ADDRESS] [--health ADDRESS] [--balancer ADDRESS]...
           [--server ADDRESS]...
       wardlink-server node add --dir DIR --name NODE --out NODEDIR --services ca [--gateways ADDRESS]

Makes an ingest node of the server in DIR: a directory with the trust roots, a configuration, the node's own key and certificate, and its own
login in the database. It holds no other key: what lies in it opens no batch, signs nothing and admits nobody. Take it to the node's machine, and
run it there. With --services ca it makes the directory of a further process that is the CA: it holds the CA's keys, and no other.

  wardlink-server node add --dir /srv/wardlink --name node-1 --out ./node-1 --host wardlink.hospital.example --health 10.1.0.11:8884 \
      --balancer 10.1.0.5
  wardlink-server run --dir ./node-1                                     # on the node's machine
  wardlink-server node add --dir /srv/wardlink --name ca-2 --out ./ca-2 --services ca
`,
	"wardlink-server node list": `
wardlink-server node list --dir DIR [--json]

  wardlink-server node list --dir /srv/wardlink
`,
	"wardlink-server node remove": `
wardlink-server node remove --dir DIR --name NODE

Ends a node: its certificate counts for nothing any more, its login is dropped, and its connections to the database are ended. Its gateways come
back to the other nodes by themselves.

  wardlink-server node remove --dir /srv/wardlink --name node-1
`,
	"wardlink-server operator": `
wardlink-server operator --dir DIR --name NAME [--role ROLE] [--json]

Makes an operator's file, with a key and a certificate of 30 days, in DIR/operator, also beside a running server. Give it to its operator
and to nobody else; a former file of that name is replaced. The operator's tool renews it when it is used past half of that.

Roles: admin (everything, also who may do what), operator (gateways, alerts, configuration; the role of a new one that is given none), auditor
(looks at all, the log among it), viewer (looks at gateways and alerts). One that is suspended or revoked gets no file.

  wardlink-server operator --dir /srv/wardlink --name jane-doe
  wardlink-server operator --dir /srv/wardlink --name revision --role auditor
`,
	"wardlink-server backup": `
wardlink-server backup --dir DIR --out FILE [--without-recovery] [--json]

Writes database, log, configuration, certificates and public keys into one file that only the recovery file opens, also beside the running
server. No file is overwritten. A directory gets a file with the date in its name.

  wardlink-server backup --dir /srv/wardlink --out /mnt/backup/
  wardlink-server backup --dir /srv/wardlink --out /mnt/backup/monday.wlbackup --json
`,
	"wardlink-server restore": `
wardlink-server restore --dir NEW --from FILE [--verify] [--passphrase-file FILE] [--json]

Makes a server's directory of a backup and the recovery passphrase. NEW must be empty or absent. Gateways keep their certificates, and bring
again what they delivered since the backup and still hold. Never run the former directory again beside it.

  wardlink-server restore --dir /srv/wardlink-new --from /mnt/backup/monday.wlbackup --verify
`,
	"wardlink-server restored": `
wardlink-server restored --dir DIR [--dry-run] [--apart] [--log NUMBER] [--json]

For a server on PostgreSQL, once its directory and its database were put back by other tools, and before anything of it runs: compares the two, ends
the log, begins the next one, whose first leaf names the former one's last checkpoint, and has gateways asked for what the database lacks. All processes
and nodes of the server must be stopped. One that was killed is run again, and goes on. Log and database that are of two moments are refused, unless they
are all that is left (--apart).

  wardlink-server restored --dir /srv/wardlink --dry-run
  wardlink-server restored --dir /srv/wardlink
`,
	"wardlink-server resend": `
wardlink-server resend --dir DIR [--json]

Has each gateway asked, as it connects in the next thirty days, for what it delivered, still holds, and the database lacks: where the database lost
commits and the log goes on, as at a standby that took over and had not everything. Also beside the running server. Asking twice is harmless; 'restore'
and 'restored' ask by themselves.

  wardlink-server resend --dir /srv/wardlink
`,
	"wardlink-server certificates": `
wardlink-server certificates --dir DIR [--json]

Lists each certificate and key of the server: its end, how much of its life is used, and who renews it. What somebody must renew is 'due' from
half of its life on and 'late' from three quarters on, each with an alert. Exit code 1 if anything is late or has ended.

  wardlink-server certificates --dir /srv/wardlink
`,
	"wardlink-server rotate issuing": `
wardlink-server rotate issuing --dir DIR [--passphrase-file FILE] [--json]

Makes the next issuing CA with the root key of the recovery file. The running server takes it up within seconds and destroys the
former key; a stopped one takes it up at its start. Certificates of the former CA stay good until they end, and gateways notice nothing.

  wardlink-server rotate issuing --dir /srv/wardlink
  wardlink-server rotate issuing --dir /srv/wardlink --passphrase-file /media/usb/passphrase
`,
	"wardlink-server rotate api": `
wardlink-server rotate api --dir DIR [--json]

Makes the identity by which a process with the service api, where that runs apart from ca, asks the CA's processes. init makes the first one, and it renews
itself; only a server that was off for a week needs another. It runs where the CA's keys are.

  wardlink-server rotate api --dir /srv/wardlink
`,
	"wardlink-server recovery check": `
wardlink-server recovery check --dir DIR [--passphrase-file FILE] [--json]

Proves that the recovery file opens with the passphrase and that its keys are this server's. It notes nothing ('init --confirm-recovery' does).

  wardlink-server recovery check --dir /srv/wardlink
`,
	"wardlink-server size": `
wardlink-server size --gateways N [--sources N] [--rate N] [--waveforms CHANNELSxHZ] [--json]

Reckons the disk that a hospital takes, by class, from what its devices send and from the retention.

  wardlink-server size --gateways 100
  wardlink-server size --gateways 100 --waveforms 4x250
  wardlink-server size --gateways 100 --dir /srv/wardlink      # with this server's retention
`,
	"wardlink-server version": `
wardlink-server version [--modules] [--json]

  wardlink-server version --modules
`,
}
