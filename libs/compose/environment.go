package compose

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/compose-spec/compose-go/v2/consts"
	"github.com/compose-spec/compose-go/v2/dotenv"
)

// variables are what ${NAME} is looked up in: the shell's, then those of the files.
func (l *loading) variables() map[string]string {
	env := map[string]string{}
	for _, kv := range l.o.Env {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			env[k] = v
		}
	}
	env[consts.ComposeProjectName] = l.projectName()
	files := slices.Clone(l.o.EnvFiles)
	if len(files) == 0 {
		beside := filepath.Join(l.dir, ".env")
		if st, err := os.Stat(beside); errors.Is(err, fs.ErrNotExist) || err == nil && st.IsDir() {
			return env
		}
		files = []string{beside}
	}
	for i, name := range files {
		var err error
		if files[i], err = abs(l.o.Dir, name); err != nil {
			l.wrong(Where{File: name}, "", "cannot tell its folder: %v", err)
		}
	}
	return l.withFiles(env, files)
}

// withFiles adds the variables of env files to env, which wins. A later file wins over an earlier one and sees its
// variables.
func (l *loading) withFiles(env map[string]string, paths []string) map[string]string {
	fromFiles := map[string]string{}
	for _, path := range paths {
		if path == os.DevNull {
			continue
		}
		name := l.short(path)
		data, err := readFile(path, maxFile)
		if err != nil {
			l.wrong(Where{File: name}, "", "cannot read the env file: %v", err)
			continue
		}
		got, err := dotenv.ParseWithLookup(bytes.NewReader(data), func(k string) (string, bool) {
			if v, ok := env[k]; ok {
				return v, true
			}
			v, ok := fromFiles[k]
			return v, ok
		})
		if err != nil {
			l.wrong(Where{File: name}, "", "it is no env file%s: write NAME=value lines", envLine(err))
			continue
		}
		maps.Copy(fromFiles, got)
	}
	maps.Copy(fromFiles, env)
	return fromFiles
}

var dotenvLine = regexp.MustCompile(`line (\d+)`)

// envLine is the place out of a parser's error whose text holds the line itself, which may be a password.
func envLine(err error) string {
	if m := dotenvLine.FindString(err.Error()); m != "" {
		return " (" + m + ")"
	}
	return ""
}

// rawEnv reads an env_file as Docker does: what stands after "=" is the value, quotes, "$" and "#" with it. A name alone
// has the shell's value, and is left out when the shell has none. Notes are for lines that compose would read otherwise.
func (l *loading) rawEnv(name string, data []byte) (pairs [][2]string) {
	for i, line := range strings.Split(strings.TrimPrefix(string(data), "\ufeff"), "\n") {
		at := Where{File: name, Line: i + 1, Column: 1}
		line = strings.TrimLeftFunc(strings.TrimSuffix(line, "\r"), unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		k, v, has := strings.Cut(line, "=")
		switch {
		case !utf8.ValidString(line) || strings.ContainsRune(line, 0):
			l.wrong(at, "", "the line holds bytes that are no text")
			continue
		case strings.HasPrefix(k, "export "):
			l.wrong(at, "", `"export" is the shell's: leave it out`)
			continue
		case k == "" || strings.ContainsFunc(k, unicode.IsSpace):
			l.wrong(at, "", "the name before = is empty or has blanks: write NAME=value")
			continue
		case !has:
			if shell, ok := l.env[k]; ok {
				pairs = append(pairs, [2]string{k, shell})
			} else {
				l.note(at, k, "it has no value here and none in the shell: it is left out")
			}
			continue
		}
		if why := dotenvDiffers(v); why != "" {
			l.note(at, k, "%s; env_file is read as it stands, as docker stack does, where docker compose would not keep that", why)
		}
		pairs = append(pairs, [2]string{k, v})
	}
	return pairs
}

func dotenvDiffers(v string) string {
	trimmed := strings.TrimSpace(v)
	switch {
	case len(trimmed) > 1 && strings.ContainsAny(trimmed[:1], `"'`):
		return "the quotes are a part of the value"
	case strings.Contains(v, "$"):
		return "the $ is a part of the value"
	case strings.Contains(v, " #"):
		return "what follows # is a part of the value"
	case v != trimmed:
		return "the blanks around the value are a part of it"
	}
	return ""
}
