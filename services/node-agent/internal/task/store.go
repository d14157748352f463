package task

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/atomicfile"
	"skep.dev/libs/id"
	skepv1 "skep.dev/proto/skep/v1"
)

// store keeps one directory a task: record.pb, spec.pb, status.pb, and health.pb when its image has a HEALTHCHECK.
type store struct{ root string }

func openStore(root string) (*store, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("make task directory: %w", err)
	}
	return &store{root: root}, nil
}

func (s *store) dir(task string) string { return filepath.Join(s.root, task) }

func (s *store) write(task, name string, m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s of task %s: %w", name, task, err)
	}
	path := filepath.Join(s.dir(task), name)
	if err := atomicfile.Write(path, b); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			if err = os.MkdirAll(s.dir(task), 0o700); err == nil {
				err = atomicfile.Write(path, b)
			}
		}
		if err != nil {
			return fmt.Errorf("write %s of task %s: %w", name, task, err)
		}
	}
	return nil
}

func (s *store) read(task, name string, m proto.Message) error {
	b, err := os.ReadFile(filepath.Join(s.dir(task), name))
	if err != nil {
		return err
	}
	return proto.Unmarshal(b, m)
}

// stored is what the disk knows of one task.
type stored struct {
	record   *skepv1.TaskRecord
	status   *skepv1.TaskStatus
	revision *skepv1.Revision // nil when it was never fetched
	// imageHealth is the HEALTHCHECK of its image, nil for none.
	imageHealth *skepv1.HealthConfig
}

// load returns every task on disk and removes the directories that hold none.
func (s *store) load() ([]stored, error) {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return nil, fmt.Errorf("list tasks on disk: %w", err)
	}
	var out []stored
	for _, e := range entries {
		if !id.Valid(e.Name()) && !e.IsDir() {
			continue
		}
		t := stored{record: &skepv1.TaskRecord{}, status: &skepv1.TaskStatus{}, revision: &skepv1.Revision{}}
		err := s.read(e.Name(), "record.pb", t.record)
		if err == nil && t.record.Id != e.Name() {
			err = errors.New("record names another task")
		}
		if err != nil {
			// No readable record: nothing was ever started from it, or the sweep finds its container.
			if err := s.remove(e.Name()); err != nil {
				return nil, err
			}
			continue
		}
		if err := s.read(e.Name(), "status.pb", t.status); err != nil || t.status.TaskId != e.Name() {
			t.status = nil
		}
		if err := s.read(e.Name(), "spec.pb", t.revision); err != nil || t.revision.Spec == nil {
			t.revision = nil
		}
		if h := (&skepv1.HealthConfig{}); s.read(e.Name(), "health.pb", h) == nil {
			t.imageHealth = h
		}
		out = append(out, t)
	}
	return out, nil
}

func (s *store) remove(task string) error {
	if err := os.RemoveAll(s.dir(task)); err != nil {
		return fmt.Errorf("remove files of task %s: %w", task, err)
	}
	return nil
}
