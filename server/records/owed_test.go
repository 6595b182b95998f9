package records_test

import (
	"database/sql"
	"testing"

	"wardlink/server/sqldb"
)

// The database is gone when an attempt is to be taken back: it is taken back once the database is there, before anything is attempted again.
func TestAnAttemptThatTheMachineTookIsGivenBack(t *testing.T) {
	t.Parallel()
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	f.until("stored", stored(1))
	set := func(db *sqldb.DB) {
		if err := db.Write(f.ctx, func(tx *sql.Tx) error {
			_, err := tx.Exec("UPDATE batches SET state = 1, attempts = 2")
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	set(f.db)
	var stream, number int64
	if err := f.db.QueryRow(f.ctx, "SELECT stream, number FROM batches").Scan(&stream, &number); err != nil {
		t.Fatal(err)
	}
	r := f.open()
	if err := r.Prepare(f.ctx); err != nil {
		t.Fatal(err)
	}
	other, err := sqldb.Open(f.path, migrations()...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	held, done := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- other.Write(f.ctx, func(*sql.Tx) error { close(held); <-done; return nil })
	}()
	<-held
	owed := r.Uncount(f.ctx, stream, uint64(number))
	close(done)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if owed != 1 {
		t.Fatalf("%d are owed while the database is locked; expected 1", owed)
	}
	if err := r.Retry(f.ctx); err != nil {
		t.Fatal(err)
	}
	if n := f.count("SELECT attempts FROM batches"); n != 1 {
		t.Errorf("%d attempts are counted; expected 1", n)
	}
}
