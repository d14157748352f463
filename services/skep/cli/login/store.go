package login

import "context"

// Get is what there is for a host: the helper's word where there is a helper for it, else the file's. None are no error.
func (f *File) Get(ctx context.Context, host string) (Credentials, error) {
	if h := f.helperFor(host); h != nil {
		c, err := h.get(ctx)
		if err != nil || !c.Empty() {
			return c, err
		}
	}
	return f.kept(host)
}

// Put keeps credentials; clear reports that they stand in the file for whoever can read it. With a helper nothing but a
// sign stands there.
func (f *File) Put(ctx context.Context, host string, c Credentials) (clear bool, err error) {
	h := f.helperFor(host)
	if h != nil {
		if err := h.put(ctx, c); err != nil {
			return false, err
		}
		c = Credentials{}
	}
	if err := f.set(host, c); err != nil {
		return false, err
	}
	return h == nil, f.save()
}

// Erase forgets a host's credentials, under every spelling of it; had reports whether there were any.
func (f *File) Erase(ctx context.Context, host string) (had bool, err error) {
	if h := f.helperFor(host); h != nil {
		c, err := h.get(ctx)
		if err != nil {
			return false, err
		}
		if err := h.erase(ctx); err != nil {
			return false, err
		}
		had = !c.Empty()
	}
	if f.remove(host) {
		return true, f.save()
	}
	return had, nil
}
