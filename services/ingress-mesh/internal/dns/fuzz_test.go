package dns

import (
	"bytes"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// FuzzAnswer: whatever a client or a name server sends, nothing panics, an answer carries the number and the question
// of its query, is not longer than the client takes, and no name of the cluster is asked of others.
func FuzzAnswer(f *testing.F) {
	pack := func(m *dns.Msg) []byte {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	q := pack(new(dns.Msg).SetQuestion("tasks.web.", dns.TypeA).SetEdns0(700, true))
	f.Add(q, q)
	f.Add(pack(new(dns.Msg).SetQuestion("1.0.1.10.in-addr.arpa.", dns.TypePTR)), pack(records(new(dns.Msg).SetQuestion("example.com.", dns.TypeA), 100)))
	for _, name := range []string{".", "WEB.", "web.1.abcdefghijklmnopqrstuvwxy.", "10.in-addr.arpa.", "1.0.0.0.d.f.ip6.arpa.", `a\.b\000\255.`, strings.Repeat("a.", 120)} {
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeANY, dns.TypeAXFR} {
			f.Add(pack(new(dns.Msg).SetQuestion(name, typ)), q)
		}
	}
	f.Add(q[:len(q)-3], q[:13])                                                                                            // cut short
	f.Add(append(bytes.Clone(q[:12]), 0xc0, 12, 0, 1, 0, 1), q)                                                            // a name that refers to itself
	f.Add([]byte("\x00\x01\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01\x01b\x00\x00\x01\x00\x01"), q) // two questions
	s := New(Config{})
	t := &task{s: s}
	t.view.Store(&view{zone: NewTable([]Network{front()})})
	f.Fuzz(func(tt *testing.T, query, response []byte) {
		var asked dns.Msg
		readable := asked.Unpack(query) == nil && len(asked.Question) == 1
		for _, udp := range []bool{true, false} {
			out, forward := s.answer(t, query, udp, make([]byte, 64))
			if forward != nil {
				if name := strings.ToLower(strings.TrimSuffix(asked.Question[0].Name, ".")); name != "" && (!strings.Contains(name, ".") || ofTask(name)) {
					tt.Fatalf("%q is asked of others", name)
				}
				out = forward()
			}
			if out == nil {
				continue
			}
			most := 65535
			if udp {
				most = dns.MinMsgSize
				if e := asked.IsEdns0(); readable && e != nil {
					most = max(most, int(e.UDPSize()))
				}
			}
			if len(out) < 12 || len(out) > most || out[2]&0x80 == 0 || !bytes.Equal(out[:2], query[:2]) {
				tt.Fatalf("%x of %x, at most %d bytes", out, query, most)
			}
			var m dns.Msg
			if err := m.Unpack(out); err != nil || readable && (len(m.Question) != 1 || m.Question[0] != asked.Question[0]) {
				tt.Fatalf("%x of %x: %v", out, query, err)
			}
		}
		if len(query) >= 12 { // all that are forwarded
			answers(response, query)
		}
		if len(response) >= 12 {
			r := &request{size: dns.MinMsgSize}
			if r.msg.Unpack(query) == nil && len(s.fit(r, bytes.Clone(response))) > dns.MinMsgSize {
				tt.Fatal("too long")
			}
		}
	})
}

// FuzzReverse: a name that is read as the whole of an address is that address's name, and no other is.
func FuzzReverse(f *testing.F) {
	for _, s := range []string{"1.0.1.10.in-addr.arpa", "01.0.1.10.in-addr.arpa", "0.10.in-addr.arpa", ".in-addr.arpa", ".0.0.0.0.in-addr.arpa", "in-addr.arpa", "..10.in-addr.arpa", "256.1.1.1.in-addr.arpa", "+1.1.1.1.in-addr.arpa",
		"5.1.0.1.10.in-addr.arpa", "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", "g.ip6.arpa", "00.ip6.arpa", "0.0.ip6.arpa", "web"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		addr, complete, ok := reverse(name)
		if !ok || !complete {
			return
		}
		full, err := dns.ReverseAddr(addr.String())
		if addr.Is4In6() { // its text is another family's
			return
		}
		if err != nil || !strings.EqualFold(strings.TrimSuffix(full, "."), name) || addr == (netip.Addr{}) {
			t.Fatalf("%q is read as %s, whose name is %q (%v)", name, addr, full, err)
		}
	})
}

// FuzzStream: messages over TCP are read as they were written, and what is cut short or too long is an error.
func FuzzStream(f *testing.F) {
	f.Add([]byte("\x00\x03abc\x00\x00\x00\x01d"), 4)
	f.Add([]byte("\xff\xffabc"), 70000)
	f.Fuzz(func(t *testing.T, text []byte, room int) {
		in, buf := bytes.NewReader(text), make([]byte, max(0, min(room, 1<<17)))
		var back bytes.Buffer
		for {
			n, err := readMessage(in, buf)
			if err != nil {
				break
			}
			if err := writeMessage(&back, buf[:n]); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(text, back.Bytes()) {
			t.Fatalf("%x became %x", text, back.Bytes())
		}
		if rest, _ := io.ReadAll(in); back.Len() == 0 && len(text) == 0 && len(rest) > 0 {
			t.Fatal("read what was not there")
		}
	})
}
