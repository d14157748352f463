package tutorial

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"time"

	"skep.dev/e2e/lab"
)

// browser asks for pages from the client host, as a person there would: it keeps cookies and follows redirections.
type browser struct{ *http.Client }

func (g *Guide) browser() browser {
	client, err := g.Lab.Host("client")
	if err != nil {
		g.stop(err)
	}
	return newBrowser(g.Lab.From(client), g.Lab.Hosts)
}

// newBrowser connects from a host. Names are those in the lab's /etc/hosts, which this process does not have.
func newBrowser(from lab.Dialer, hosts []*lab.Host) browser {
	jar, _ := cookiejar.New(nil) // without options nothing can fail
	dial := func(_ context.Context, network, address string) (net.Conn, error) {
		name, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		for _, h := range hosts {
			if h.Name == name {
				address = net.JoinHostPort(h.IP, port)
			}
		}
		return from.Dial(network, address)
	}
	return browser{&http.Client{Jar: jar, Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// get reads a page; anything but 200 is an error.
func (b browser) get(address string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	return b.page(req)
}

func (b browser) page(req *http.Request) (string, error) {
	resp, err := b.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s: %s", req.URL, resp.Status, short(body))
	}
	return string(body), err
}

func short(b []byte) string {
	s := strings.Join(strings.Fields(string(b)), " ")
	return s[:min(len(s), 300)]
}

func (b browser) submit(address string, form url.Values) (string, error) {
	req, err := http.NewRequest(http.MethodPost, address, strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return b.page(req)
}

// blog is a WordPress at an address such as http://m1:30000.
type blog struct {
	browser
	address string
}

const (
	blogTitle = "Swarm without Docker"
	author    = "admin"
	phrase    = "correct horse battery staple"
)

// install fills in the form that a new WordPress begins with.
func (b blog) install() error {
	page, err := b.get(b.address + "/wp-admin/install.php")
	if err != nil {
		return err
	}
	if !strings.Contains(page, `name="weblog_title"`) {
		return fmt.Errorf("the installation page has no form: %s", short([]byte(page)))
	}
	page, err = b.submit(b.address+"/wp-admin/install.php?step=2", url.Values{"weblog_title": {blogTitle}, "user_name": {author},
		"admin_password": {phrase}, "admin_password2": {phrase}, "pw_weak": {"on"}, "admin_email": {"admin@example.com"}, "Submit": {"Install WordPress"}, "language": {""}})
	if err == nil && !strings.Contains(page, "Success!") {
		err = fmt.Errorf("the blog was not installed: %s", short([]byte(page)))
	}
	return err
}

// login leaves the browser with the author's cookies.
func (b blog) login() error {
	if _, err := b.get(b.address + "/wp-login.php"); err != nil { // sets the cookie by which WordPress sees that cookies work
		return err
	}
	page, err := b.submit(b.address+"/wp-login.php", url.Values{"log": {author}, "pwd": {phrase}, "wp-submit": {"Log In"}, "testcookie": {"1"},
		"redirect_to": {b.address + "/"}})
	if err == nil && !strings.Contains(page, "/wp-admin/profile.php") { // the bar that only who is logged in sees
		err = fmt.Errorf("the login was refused: %s", short([]byte(page)))
	}
	return err
}

// write publishes a post, by the interface that WordPress's editor uses.
func (b blog) write(title, text string) error {
	nonce, err := b.get(b.address + "/wp-admin/admin-ajax.php?action=rest-nonce")
	if err != nil {
		return fmt.Errorf("ask for leave to write: %w", err)
	}
	post, err := json.Marshal(map[string]string{"title": title, "content": text, "status": "publish"})
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, b.address+"/index.php?rest_route=/wp/v2/posts", bytes.NewReader(post))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-WP-Nonce", nonce)
	page, err := b.page(req)
	if err == nil && !strings.Contains(page, title) {
		err = fmt.Errorf("the post was not published: %s", short([]byte(page)))
	}
	return err
}

// front checks that the front page is WordPress's, in its theme, with these words on it.
func (b blog) front(words ...string) error {
	page, err := b.get(b.address + "/")
	if err != nil {
		return err
	}
	for _, w := range append([]string{"<title>" + blogTitle + "</title>", "themes/twentytwentyone/style.css", "</html>"}, words...) {
		if !strings.Contains(page, w) {
			err = errors.Join(err, fmt.Errorf("the front page through %s lacks %q: %s", b.address, w, short([]byte(page))))
		}
	}
	return err
}
