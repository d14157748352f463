package pki

import (
	"crypto/x509"
	"fmt"
	"strings"
)

// serialLen is the length of a serial number in hexadecimal: 128 bits.
const serialLen = 32

// Serial is a certificate's serial number as skep writes it: 32 hexadecimal digits, lower case.
func Serial(c *x509.Certificate) string { return fmt.Sprintf("%0*x", serialLen, c.SerialNumber) }

// IsSerial reports whether s is a serial number as Serial writes it.
func IsSerial(s string) bool { return len(s) == serialLen && strings.Trim(s, "0123456789abcdef") == "" }
