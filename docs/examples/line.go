// Line SOCKET reads one heart rate a line of standard input; each is sent until the gateway has it on disk.
package main

import (
	"bufio"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"time"
)

func main() {
	boot, in := time.Now().UnixNano(), bufio.NewScanner(os.Stdin)
	for n := 0; in.Scan(); n++ {
		line := fmt.Sprintf(`{"id":"%x-%d","bed":"ICU^07","device":"go","time":%q,"observations":[{"code":"MDC_ECG_HEART_RATE","value":%s,"unit":"/min"}]}`+"\n",
			boot, n, time.Now().Format(time.RFC3339Nano), in.Text())
		answer, err := send(os.Args[1], line)
		for ; err != nil; answer, err = send(os.Args[1], line) {
			time.Sleep(time.Second) // no answer: it is not on disk, so the same bytes again
		}
		if strings.Contains(answer, `"error"`) {
			log.Fatal(answer)
		}
	}
}

func send(path, line string) (answer string, err error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte(line)); err != nil {
		return "", err
	}
	return bufio.NewReader(c).ReadString('\n')
}
