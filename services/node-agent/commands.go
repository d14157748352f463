package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/ctrd"
	"skep.dev/services/node-agent/internal/logs"
)

// commands are the endpoints a node answers.
type commands struct {
	rpc     *rpc.Server
	streams []*stream.Server
}

func (c *commands) close() error {
	var err error
	for _, st := range c.streams {
		err = errors.Join(err, st.Close())
	}
	return errors.Join(err, c.rpc.Close())
}

func (s *Service) serve() (*commands, error) {
	srv, err := rpc.NewServer(s.cfg.NC, rpc.Config{
		Name: "skep-agent", Version: s.cfg.Version, Description: "containers, images and volumes of node " + s.cfg.NodeID, Log: s.log, Metrics: s.cfg.Metrics,
		Timeout: 30 * time.Minute, // a pull takes what it takes
	})
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	c := &commands{rpc: srv}
	id := s.cfg.NodeID
	err = errors.Join(
		api.Handle(srv, api.NodeSelf.At(id), s.self),
		api.Handle(srv, api.ImageList.At(id), s.listImages),
		api.Handle(srv, api.ImageRemove.At(id), s.removeImage),
		api.Handle(srv, api.ImagePull.At(id), s.pullImage),
		api.Handle(srv, api.VolumeCreate.At(id), s.createVolume),
		api.Handle(srv, api.VolumeList.At(id), s.listVolumes),
		api.Handle(srv, api.VolumeUpdate.At(id), s.updateVolume),
		api.Handle(srv, api.VolumeRemove.At(id), s.removeVolume),
		api.Handle(srv, api.VolumePrune.At(id), s.pruneVolumes),
		api.Handle(srv, api.Stats.At(id), s.stats),
		api.Handle(srv, api.UpgradeState.At(id), s.upgradeState),
	)
	one, serr := stream.Serve(s.cfg.NC, api.UpgradeOpen.At(id).Subject(), id, s.upgrade, stream.WithLimit(1))
	if err = errors.Join(err, serr); serr == nil {
		c.streams = append(c.streams, one)
	}
	for subj, h := range map[string]stream.Handler{api.ExecOpen.At(id).Subject(): s.exec, api.LogsOpen.At(id).Subject(): s.logs, api.ImageOpen.At(id).Subject(): s.loadImage} {
		st, serr := stream.Serve(s.cfg.NC, subj, id, h)
		if serr != nil {
			err = errors.Join(err, serr)
			continue
		}
		c.streams = append(c.streams, st)
	}
	if err != nil {
		return nil, fmt.Errorf("agent: %w", errors.Join(err, c.close()))
	}
	return c, nil
}

// imagesInUse are the digests that tasks which have not ended run.
func (s *Service) imagesInUse() map[string]bool {
	out := map[string]bool{}
	for _, st := range s.set.Statuses() {
		if st.State >= skepv1.TaskState_TASK_STATE_COMPLETE {
			continue
		}
		if j, _ := s.set.Job(st.TaskId); j != nil && j.Revision != nil {
			out[j.Container().GetImage()] = true
		}
	}
	return out
}

func (s *Service) listImages(ctx context.Context, _ *skepv1.ListImagesRequest) (*skepv1.ListImagesReply, error) {
	list, err := s.runtime.ListImages(ctx, s.imagesInUse())
	if err != nil {
		return nil, err
	}
	out := &skepv1.ListImagesReply{}
	for _, l := range list {
		out.Images = append(out.Images, &skepv1.Image{
			Name: l.Name, Digest: l.Digest.String(), Id: l.Config.String(), Size: l.Size, CreatedAt: timestamppb.New(l.Image.CreatedAt), InUse: l.InUse,
		})
	}
	return out, nil
}

func (s *Service) removeImage(ctx context.Context, r *skepv1.RemoveImageRequest) (*skepv1.RemoveImageReply, error) {
	s.tell(ctx, &skepv1.ToldRequest{Verb: "image-remove", Subject: r.GetRef()})
	gone, err := s.runtime.RemoveImage(ctx, r.GetRef(), r.GetForce(), s.imagesInUse())
	if errdefs.IsNotFound(err) {
		return nil, fault.NotFound("no such image: %s", r.GetRef())
	}
	if err != nil {
		return nil, err
	}
	return &skepv1.RemoveImageReply{Removed: gone}, nil
}

func (s *Service) pullImage(ctx context.Context, r *skepv1.PullImageRequest) (*skepv1.PullImageReply, error) {
	s.tell(ctx, &skepv1.ToldRequest{Verb: "image-pull", Subject: r.GetRef()})
	auth, err := s.credentials(ctx, r.GetRegistryAuth())
	if err != nil {
		return nil, err
	}
	name, digest, err := s.runtime.PullImage(ctx, r.GetRef(), auth)
	if err != nil {
		return nil, fault.Invalid("%v", err)
	}
	return &skepv1.PullImageReply{Name: name, Digest: digest}, nil
}

// credentials are those a request names, nil for "". The vault gives them to managers alone.
func (s *Service) credentials(ctx context.Context, id string) (*skepv1.DeliveredValue, error) {
	if id == "" {
		return nil, nil
	}
	v, err := s.courier.credentials(ctx, id)
	if err != nil && fault.Of(err) == fault.CodeInternal {
		err = fault.Unavailable("%v", err)
	}
	return v, err
}

func (s *Service) resolveImage(ctx context.Context, r *skepv1.ResolveImageRequest) (*skepv1.ResolveImageReply, error) {
	auth, err := s.credentials(ctx, r.GetRegistryAuth())
	if err != nil {
		return nil, err
	}
	img, err := s.runtime.ResolveImage(ctx, r.GetRef(), auth)
	if err != nil {
		return nil, err
	}
	out := &skepv1.ResolveImageReply{Ref: img.Ref, Volumes: img.Volumes}
	for _, p := range img.Platforms {
		out.Platforms = append(out.Platforms, &skepv1.Platform{Os: p.OS, Arch: p.Architecture})
	}
	return out, nil
}

func (s *Service) stats(context.Context, *skepv1.StatsRequest) (*skepv1.StatsReply, error) {
	out := &skepv1.StatsReply{}
	for _, st := range s.set.Statuses() {
		if st.State != skepv1.TaskState_TASK_STATE_RUNNING {
			continue
		}
		out.Tasks = append(out.Tasks, s.statsOf(st.TaskId))
	}
	return out, nil
}

// statsOf is what a task uses.
func (s *Service) statsOf(id string) *skepv1.TaskStats {
	t := &skepv1.TaskStats{TaskId: id}
	t.CpuNanos, t.MemoryBytes, t.MemoryLimit, t.Pids = s.runtime.Stats(id)
	return t
}

// refuse answers a stream's request with an error, before or after it was accepted.
func refuse(sess *stream.Session, err error) {
	var f *fault.Error
	if !errors.As(err, &f) {
		f = fault.New(fault.CodeInternal, "%v", err)
	}
	if !sess.Refuse(f) {
		_ = sess.Exit(1, f) // the client is gone
	}
}

func (s *Service) exec(ctx context.Context, sess *stream.Session, body []byte) {
	req := &skepv1.ExecRequest{}
	if _, err := rpc.Decode(body, "", req); err != nil {
		refuse(sess, fault.Invalid("cannot read the exec request: %v", err))
		return
	}
	if err := s.mayExec(req); err != nil {
		refuse(sess, err)
		return
	}
	s.tellExec(ctx, req)
	streams := ctrd.ExecIO{Stdout: sess.Writer(stream.Out), Stderr: sess.Writer(stream.Err), Control: sess.Control()}
	if req.GetStdin() {
		streams.Stdin = sess.Reader(stream.In)
	}
	code, err := s.runtime.Exec(ctx, req, streams)
	if err != nil {
		if code == 0 {
			refuse(sess, err)
			return
		}
		_ = sess.Exit(int(code), err) // the client is gone
		return
	}
	_ = sess.Exit(int(code), nil) // likewise
}

func (s *Service) logs(ctx context.Context, sess *stream.Session, body []byte) {
	req := &skepv1.LogsRequest{}
	if _, err := rpc.Decode(body, "", req); err != nil {
		refuse(sess, fault.Invalid("cannot read the logs request: %v", err))
		return
	}
	out := sess.Writer(stream.Out)
	var buf []byte
	flush := func() error {
		if len(buf) == 0 {
			return nil
		}
		_, err := out.Write(buf)
		buf = buf[:0]
		return err
	}
	err := s.readLogs(ctx, req, func(e *skepv1.LogEntry) error {
		b, err := proto.Marshal(e)
		if err != nil {
			return fmt.Errorf("encode log entry: %w", err)
		}
		buf = append(binary.AppendUvarint(buf, uint64(len(b))), b...)
		if len(buf) >= stream.MaxFrame-4096 {
			return flush()
		}
		return nil
	}, flush)
	if err = errors.Join(err, flush()); err != nil {
		if ctx.Err() == nil {
			refuse(sess, err)
		}
		return
	}
	_ = sess.Exit(0, nil) // the client is gone
}

// readLogs gives the lines of a task to each, and calls idle when there are no more for now. What cannot be read is a fault.
func (s *Service) readLogs(ctx context.Context, req *skepv1.LogsRequest, each func(*skepv1.LogEntry) error, idle func() error) error {
	j, st := s.set.Job(req.GetTaskId())
	if j == nil {
		return fault.NotFound("task %s is not on node %s", req.GetTaskId(), s.cfg.Hostname)
	}
	if j.Revision.GetSpec().GetTask().GetLogDriver().GetName() == "none" {
		return fault.Invalid("task %s keeps no logs: its log driver is none", req.GetTaskId())
	}
	q := logs.Query{Follow: req.GetFollow(), Tail: req.GetTail(), Stdout: req.GetStdout(), Stderr: req.GetStderr()}
	if req.Since != nil {
		q.Since = req.Since.AsTime().UnixNano()
	}
	if req.Until != nil {
		q.Until = req.Until.AsTime().UnixNano()
	}
	if st.State >= skepv1.TaskState_TASK_STATE_COMPLETE && s.keeper.Holds(req.GetTaskId()) {
		q.Follow = true // it has ended, and its last words come at any moment
	}
	for q.Follow && !s.keeper.Holds(req.GetTaskId()) {
		// Nothing has been written yet, or everything has.
		if _, st := s.set.Job(req.GetTaskId()); st == nil || st.State >= skepv1.TaskState_TASK_STATE_COMPLETE {
			break
		}
		if wait(ctx, 100*time.Millisecond); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	err := s.keeper.Read(ctx, req.GetTaskId(), j.Dir, q, func(e logs.Entry) error {
		return each(&skepv1.LogEntry{TimeUnixNano: e.Time, Stderr: e.Stderr, Line: e.Line, Partial: e.Partial})
	}, idle)
	if err != nil && fault.Of(err) == fault.CodeInternal && ctx.Err() == nil {
		err = fault.Unavailable("read the logs of task %s: %v", req.GetTaskId(), err)
	}
	return err
}

// mayExec refuses a command for a task that does not run here.
func (s *Service) mayExec(req *skepv1.ExecRequest) error {
	_, st := s.set.Job(req.GetTaskId())
	switch {
	case st == nil:
		return fault.NotFound("task %s is not on node %s", req.GetTaskId(), s.cfg.Hostname)
	case st.State != skepv1.TaskState_TASK_STATE_RUNNING:
		return fault.Conflict("task %s is not running (%s)", req.GetTaskId(), stateName(st.State))
	}
	return nil
}

// tellExec has noted who runs what in which task.
func (s *Service) tellExec(ctx context.Context, req *skepv1.ExecRequest) {
	told := &skepv1.ToldRequest{Verb: "exec", TaskId: req.GetTaskId()}
	if len(req.GetArgs()) > 0 {
		told.Subject = req.Args[0] // no arguments: passwords stand there
	}
	s.tell(ctx, told)
}

func (s *Service) loadImage(ctx context.Context, sess *stream.Session, _ []byte) {
	s.tell(ctx, &skepv1.ToldRequest{Verb: "image-load"})
	names, err := s.runtime.Images.Load(s.runtime.Context(ctx), sess.Reader(stream.In))
	if err != nil {
		refuse(sess, fault.Invalid("%v", err))
		return
	}
	b, err := proto.Marshal(&skepv1.LoadImageReply{Names: names})
	if err == nil {
		_, err = sess.Writer(stream.Out).Write(append(binary.AppendUvarint(nil, uint64(len(b))), b...))
	}
	if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		refuse(sess, fault.Unavailable("%v", err))
		return
	}
	_ = sess.Exit(0, nil) // the client is gone
}

func stateName(t skepv1.TaskState) string {
	return map[skepv1.TaskState]string{
		skepv1.TaskState_TASK_STATE_ACCEPTED: "accepted", skepv1.TaskState_TASK_STATE_PREPARING: "preparing",
		skepv1.TaskState_TASK_STATE_READY: "ready", skepv1.TaskState_TASK_STATE_STARTING: "starting",
		skepv1.TaskState_TASK_STATE_COMPLETE: "complete", skepv1.TaskState_TASK_STATE_SHUTDOWN: "shutdown",
		skepv1.TaskState_TASK_STATE_FAILED: "failed", skepv1.TaskState_TASK_STATE_REJECTED: "rejected",
	}[t]
}
