// An echo without any library. Usage: go run . /path/to/echo.sock
//
// A frame is four bytes, type << 24 | length, big-endian, and then the payload.
// 24 kHz both ways, so that nothing needs resampling; see docs/backend-protocol.md.
package main

import (
	"bufio"
	"encoding/binary"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
)

const (
	start, ready, stop, audio, event = 0x01, 0x02, 0x0f, 0x10, 0x20
	rates                            = `{"rate_in":24000,"rate_out":24000}`
)

func write(edge net.Conn, kind uint32, payload []byte) {
	header := binary.BigEndian.AppendUint32(nil, kind<<24|uint32(len(payload)))
	edge.Write(append(header, payload...)) // if it fails, the next read does too
}

// talk serves one call; the edge connects once per call.
func talk(edge net.Conn) {
	defer edge.Close()
	reader := bufio.NewReader(edge)
	for {
		var header [4]byte
		if _, err := io.ReadFull(reader, header[:]); err != nil {
			return // the edge went away
		}
		word := binary.BigEndian.Uint32(header[:])
		payload := make([]byte, word&0xffffff)
		if _, err := io.ReadFull(reader, payload); err != nil {
			return
		}
		switch kind := word >> 24; kind {
		case start:
			write(edge, ready, []byte(rates))
		case audio, event:
			write(edge, kind, payload)
		case stop:
			return
		} // every other type is ignored
	}
}

func main() {
	path := os.Args[len(os.Args)-1]
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		os.Remove(path) // what a dead predecessor left
	}
	syscall.Umask(0o177) // the socket is for this user alone
	listener, err := net.Listen("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { <-signals; listener.Close() }() // removes the file
	for {
		edge, err := listener.Accept()
		if err != nil {
			return
		}
		go talk(edge)
	}
}
