package dns

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// ednsSize is what is said to clients that they may send at once.
const ednsSize = 1232

// maxPayload is the most a datagram can carry.
const maxPayload = 65507

// request is one query with what is needed to answer it.
type request struct {
	msg  dns.Msg
	size int // of the largest answer the client takes
	edns *dns.OPT
}

// answer gives the answer to a query, in buf if it fits there, or what will give it after others were asked. With
// neither, the client is not to be answered.
func (s *Server) answer(t *task, query []byte, udp bool, buf []byte) (out []byte, forward func() []byte) {
	const header = 12
	if len(query) < header || query[2]&0x80 != 0 {
		return nil, nil // garbage or itself an answer: whatever is sent back could go round in circles
	}
	s.count.queries.Add(1)
	r := &request{size: dns.MaxMsgSize}
	err := r.msg.Unpack(query)
	if udp {
		r.size = dns.MinMsgSize
	}
	if err == nil {
		if r.edns = r.msg.IsEdns0(); r.edns != nil && udp {
			r.size = min(max(r.size, int(r.edns.UDPSize())), maxPayload)
		}
	}
	switch {
	case r.msg.Opcode != dns.OpcodeQuery:
		return s.refuse(r, dns.RcodeNotImplemented, buf), nil
	case err != nil || len(r.msg.Question) != 1:
		return s.refuse(r, dns.RcodeFormatError, buf), nil
	case r.edns != nil && r.edns.Version() != 0:
		return s.refuse(r, dns.RcodeBadVers, buf), nil
	}
	q := r.msg.Question[0]
	// Beyond 248 are transfers of zones and other kinds that are none of a record, except the one for any.
	if q.Qclass != dns.ClassINET || q.Qtype > 248 && q.Qtype < 256 && q.Qtype != dns.TypeANY {
		return s.refuse(r, dns.RcodeRefused, buf), nil
	}
	v := t.view.Load()
	if m := r.local(v.zone, q); m != nil {
		s.count.local.Add(1)
		return s.pack(r, m, buf), nil
	}
	release, err := s.reserve(t)
	if err != nil {
		s.count.failures.Add(1)
		s.count.overloads.Add(1)
		return s.pack(r, r.reply(dns.RcodeServerFailure), buf), nil
	}
	asked := append([]byte(nil), query...)
	return nil, func() []byte {
		defer release()
		s.count.forwarded.Add(1)
		if out := s.forward(t.life, v.nameservers, asked); out != nil {
			s.count.answered.Add(1)
			return s.fit(r, out)
		}
		s.count.failures.Add(1)
		return s.pack(r, r.reply(dns.RcodeServerFailure), nil)
	}
}

// refuse is the answer to what is malformed or not served.
func (s *Server) refuse(r *request, rcode int, buf []byte) []byte {
	s.count.refused.Add(1)
	return s.pack(r, r.reply(rcode), buf)
}

// local is the answer from the tables, nil if others are to be asked.
func (r *request) local(z Zone, q dns.Question) *dns.Msg {
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	if addrs, ok := z.A(name); ok {
		m := r.reply(dns.RcodeSuccess)
		m.Answer = addresses(q, addrs)
		return m
	}
	if addr, complete, ok := reverse(name); ok {
		switch ptr, known := z.PTR(addr); {
		case complete && known:
			m := r.reply(dns.RcodeSuccess)
			if q.Qtype == dns.TypePTR {
				m.Answer = []dns.RR{&dns.PTR{Hdr: header(q), Ptr: dns.Fqdn(ptr)}}
			}
			return m
		case !z.Owns(addr):
			return nil
		case complete:
			return r.reply(dns.RcodeNameError)
		}
		return r.reply(dns.RcodeSuccess) // there are names below it
	}
	if internal(name, z) {
		return r.reply(dns.RcodeNameError)
	}
	return nil
}

func header(q dns.Question) dns.RR_Header {
	return dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: ttl}
}

// addresses are the records of the kind asked for, in random order: clients take the first one.
func addresses(q dns.Question, addrs []netip.Addr) []dns.RR {
	if q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA {
		return nil
	}
	out := make([]dns.RR, 0, len(addrs))
	for _, a := range addrs {
		switch {
		case q.Qtype == dns.TypeA && a.Is4():
			out = append(out, &dns.A{Hdr: header(q), A: net.IP(a.AsSlice())})
		case q.Qtype == dns.TypeAAAA && a.Is6():
			out = append(out, &dns.AAAA{Hdr: header(q), AAAA: net.IP(a.AsSlice())})
		}
	}
	if len(out) > 1 {
		rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	}
	return out
}

// reply is an empty answer.
func (r *request) reply(rcode int) *dns.Msg {
	m := &dns.Msg{}
	m.Id, m.Response, m.Opcode = r.msg.Id, true, r.msg.Opcode
	m.RecursionDesired, m.RecursionAvailable, m.CheckingDisabled = r.msg.RecursionDesired, true, r.msg.CheckingDisabled
	m.Rcode = rcode
	if len(r.msg.Question) > 0 {
		m.Question = r.msg.Question[:1]
	}
	if r.edns != nil {
		m.SetEdns0(ednsSize, false)
	}
	return m
}

// pack encodes an answer so that the client takes it: what is too long is cut and says so.
func (s *Server) pack(r *request, m *dns.Msg, buf []byte) []byte {
	m.Compress = len(m.Answer) > 1
	if len(m.Answer) > 1 {
		m.Truncate(r.size)
		if m.Truncated {
			s.count.truncated.Add(1)
		}
	}
	out, err := m.PackBuffer(buf)
	if err != nil { // a name in a table that is none
		m.Answer, m.Rcode = nil, dns.RcodeServerFailure
		if out, err = m.PackBuffer(buf); err != nil {
			return nil
		}
	}
	return out
}

// fit makes another server's answer one to the client's query.
func (s *Server) fit(r *request, out []byte) []byte {
	out[0], out[1] = byte(r.msg.Id>>8), byte(r.msg.Id)
	if len(out) <= r.size {
		return out
	}
	s.count.truncated.Add(1)
	var m dns.Msg
	if m.Unpack(out) == nil {
		m.Truncate(r.size)
		m.Truncated = true
		if cut, err := m.Pack(); err == nil && len(cut) <= r.size {
			return cut
		}
	}
	e := r.reply(int(out[3] & 0xf))
	e.Truncated = true
	return s.pack(r, e, nil)
}
