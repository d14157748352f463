package translate

import (
	"os"

	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

func secretRefsFromDocker(refs []*swarm.SecretReference) ([]*skepv1.FileReference, error) {
	var out []*skepv1.FileReference
	for _, r := range refs {
		switch {
		case r == nil || r.SecretID == "" && r.SecretName == "":
			return nil, fault.Invalid("malformed secret reference: it names no secret")
		case r.File == nil:
			return nil, fault.Invalid("malformed secret reference, no target provided: secret %s has no File", r.SecretName)
		}
		out = append(out, &skepv1.FileReference{Id: r.SecretID, Name: r.SecretName, Target: r.File.Name, Uid: r.File.UID, Gid: r.File.GID, Mode: uint32(r.File.Mode)})
	}
	return out, nil
}

func secretRefsToDocker(files []*skepv1.FileReference) []*swarm.SecretReference {
	var out []*swarm.SecretReference
	for _, f := range files {
		out = append(out, &swarm.SecretReference{SecretID: f.GetId(), SecretName: f.GetName(),
			File: &swarm.SecretReferenceFileTarget{Name: f.GetTarget(), UID: f.GetUid(), GID: f.GetGid(), Mode: os.FileMode(f.GetMode())}})
	}
	return out
}

func configRefsFromDocker(refs []*swarm.ConfigReference) ([]*skepv1.FileReference, error) {
	var out []*skepv1.FileReference
	for _, r := range refs {
		switch {
		case r == nil || r.ConfigID == "" && r.ConfigName == "":
			return nil, fault.Invalid("malformed config reference: it names no config")
		case r.File != nil && r.Runtime != nil:
			return nil, fault.Invalid("invalid Config: cannot specify both File and Runtime")
		case r.Runtime != nil:
			return nil, notKept("TaskTemplate.ContainerSpec.Configs.Runtime", "it is for credential specs of Windows; give config "+r.ConfigName+" a File")
		case r.File == nil:
			return nil, fault.Invalid("invalid Config: either File or Runtime should be set")
		}
		out = append(out, &skepv1.FileReference{Id: r.ConfigID, Name: r.ConfigName, Target: r.File.Name, Uid: r.File.UID, Gid: r.File.GID, Mode: uint32(r.File.Mode)})
	}
	return out, nil
}

func configRefsToDocker(files []*skepv1.FileReference) []*swarm.ConfigReference {
	var out []*swarm.ConfigReference
	for _, f := range files {
		out = append(out, &swarm.ConfigReference{ConfigID: f.GetId(), ConfigName: f.GetName(),
			File: &swarm.ConfigReferenceFileTarget{Name: f.GetTarget(), UID: f.GetUid(), GID: f.GetGid(), Mode: os.FileMode(f.GetMode())}})
	}
	return out
}
