// Command litmus runs inside a virtual machine whose power is going to be cut. It
// commits to a database (bbolt: a B+ tree in one file, written in place) and to a
// log (records appended to a file, each flushed) on a mounted volume, and says so
// of each on standard output when it is durable. After the cut it looks whether
// everything that it had said is there, whole, and in order.
//
//	litmus write DIR NAME       goes on where it was until the machine ends
//	litmus check DIR DB LOG     DB and LOG are the last numbers said, 0 for none
//	litmus waits DIR            writes without a pause, and says which writes took long
//
// It promises that a number is said only after the file system has said that it is
// durable. It owns no goroutine, except that waits has a few that write.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"go.etcd.io/bbolt"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("litmus:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "write":
		return write(args[1], args[2])
	case len(args) == 4 && args[0] == "check":
		db, err := strconv.ParseUint(args[2], 10, 64)
		if err != nil {
			return err
		}
		log, err := strconv.ParseUint(args[3], 10, 64)
		if err != nil {
			return err
		}
		return errors.Join(checkDB(args[1], db), checkLog(args[1], log))
	}
	if len(args) == 2 && args[0] == "waits" {
		return waits(args[1])
	}
	return errors.New("usage: litmus write DIR NAME, litmus check DIR DB LOG, or litmus waits DIR")
}

// recordSize is that of a record in the log: no multiple of a block, so that most
// flushes write a block again that holds an older record.
const recordSize = 3000

// record is the n-th, of which every byte is known.
func record(n uint64) []byte {
	p := make([]byte, recordSize)
	r := rand.New(rand.NewPCG(n, 1))
	for i := 8; i < len(p)-4; i++ {
		p[i] = byte(r.Uint32())
	}
	binary.LittleEndian.PutUint64(p, n)
	binary.LittleEndian.PutUint32(p[len(p)-4:], crc32.ChecksumIEEE(p[:len(p)-4]))
	return p
}

// bucket holds the database's records by number.
const bucket = "records"

func open(dir string) (*bbolt.DB, error) {
	return bbolt.Open(filepath.Join(dir, "db"), 0o600, nil)
}

func key(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func write(dir, name string) error {
	db, err := open(dir)
	if err != nil {
		return err
	}
	defer db.Close()
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	inDB, err := lastInDB(db)
	if err != nil {
		return err
	}
	inLog, err := lastInLog(log)
	if err != nil {
		return err
	}
	for {
		inDB++
		if err := db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte(bucket))
			if err != nil {
				return err
			}
			return b.Put(key(inDB), record(inDB))
		}); err != nil {
			return err
		}
		fmt.Println("acked", name, "db", inDB)
		inLog++
		if _, err := log.WriteAt(record(inLog), int64(inLog-1)*recordSize); err != nil {
			return err
		}
		if err := log.Sync(); err != nil {
			return err
		}
		fmt.Println("acked", name, "log", inLog)
	}
}

func lastInDB(db *bbolt.DB) (last uint64, err error) {
	err = db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		if k, _ := b.Cursor().Last(); k != nil {
			last = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	return last, err
}

// lastInLog is the last record before one that is not whole.
func lastInLog(log *os.File) (uint64, error) {
	p := make([]byte, recordSize)
	for n := uint64(1); ; n++ {
		_, err := log.ReadAt(p, int64(n-1)*recordSize)
		if errors.Is(err, io.EOF) || err == nil && string(p) != string(record(n)) {
			return n - 1, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// checkDB wants a sound tree with all records up to the last one, whole and in
// order. There may be more: what was said last may not have been heard.
func checkDB(dir string, acked uint64) error {
	db, err := open(dir)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		var wrong []error
		for err := range tx.Check() {
			wrong = append(wrong, err)
		}
		if len(wrong) > 0 {
			return fmt.Errorf("the database is damaged: %w", errors.Join(wrong...))
		}
		b := tx.Bucket([]byte(bucket))
		if b == nil && acked > 0 {
			return fmt.Errorf("the database is empty, %d were acknowledged", acked)
		}
		n := uint64(0)
		if b != nil {
			if err := b.ForEach(func(k, v []byte) error {
				if n++; string(k) != string(key(n)) || string(v) != string(record(n)) {
					return fmt.Errorf("the database's record %d is not what was written", n)
				}
				return nil
			}); err != nil {
				return err
			}
		}
		fmt.Println("checked db:", acked, "acknowledged,", n, "there")
		if n < acked {
			return fmt.Errorf("the database has %d records, %d were acknowledged", n, acked)
		}
		return nil
	})
}

func checkLog(dir string, acked uint64) error {
	f, err := os.Open(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := lastInLog(f)
	if err != nil {
		return err
	}
	fmt.Println("checked log:", acked, "acknowledged,", n, "there")
	if n < acked {
		return fmt.Errorf("the log has %d whole records, %d were acknowledged", n, acked)
	}
	return nil
}
