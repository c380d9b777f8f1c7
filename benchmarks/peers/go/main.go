// A server made of emersion's go-smtp: a message is read to its end and forgotten.
//
//	go-smtp [-tls starttls|implicit -certificate PEM -key PEM] [-login USER:PASSWORD] PORT
//
// GOMAXPROCS says how many threads run it. SIGTERM prints "messages N" and ends it.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

const sizeLimit = 1 << 30 // octets of a message: more than any row sends

var (
	messages atomic.Int64
	login    string
)

type session struct{}

func (session) Reset()                               {}
func (session) Logout() error                        { return nil }
func (session) Mail(string, *smtp.MailOptions) error { return nil }
func (session) Rcpt(string, *smtp.RcptOptions) error { return nil }

func (session) Data(content io.Reader) error {
	if _, err := io.Copy(io.Discard, content); err != nil {
		return err
	}
	messages.Add(1)
	return nil
}

type askingSession struct{ session }

func (askingSession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (askingSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(identity, username, password string) error {
		if username+":"+password != login {
			return smtp.ErrAuthFailed
		}
		return nil
	}), nil
}

func newSession(*smtp.Conn) (smtp.Session, error) {
	if login != "" {
		return askingSession{}, nil
	}
	return session{}, nil
}

func main() {
	secure := flag.String("tls", "", "starttls or implicit")
	certificate := flag.String("certificate", "", "PEM file")
	key := flag.String("key", "", "PEM file")
	flag.StringVar(&login, "login", "", "USER:PASSWORD")
	flag.Parse()

	server := smtp.NewServer(smtp.BackendFunc(newSession))
	server.Domain = "localhost"
	server.MaxMessageBytes = sizeLimit
	server.ReadTimeout = 5 * time.Minute
	server.WriteTimeout = 5 * time.Minute
	server.AllowInsecureAuth = true
	server.ErrorLog = log.New(io.Discard, "", 0)

	listener, err := net.Listen("tcp", "127.0.0.1:"+flag.Arg(0))
	if err != nil {
		log.Fatal(err)
	}
	if *secure != "" {
		pair, err := tls.LoadX509KeyPair(*certificate, *key)
		if err != nil {
			log.Fatal(err)
		}
		config := &tls.Config{Certificates: []tls.Certificate{pair}}
		if *secure == "implicit" {
			listener = tls.NewListener(listener, config)
		} else {
			server.TLSConfig = config
		}
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() { log.Fatal(server.Serve(listener)) }()
	<-ended
	fmt.Println("messages", messages.Load())
}
