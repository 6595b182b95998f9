#!/usr/bin/env python3
"""line.py SOCKET: one heart rate a line of standard input; each is sent until the gateway has it on disk."""
import datetime, json, socket, sys, time, uuid

boot = uuid.uuid4()
for n, bpm in enumerate(sys.stdin):
    message = {"id": f"{boot}-{n}", "bed": "ICU^07", "device": "python", "time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
               "observations": [{"code": "MDC_ECG_HEART_RATE", "value": int(bpm), "unit": "/min"}]}
    line, answer = json.dumps(message).encode() + b"\n", b""
    while not answer.endswith(b"\n"):
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(10)
                s.connect(sys.argv[1])
                s.sendall(line)
                answer = s.makefile("rb").readline()
        except OSError:
            answer = b""
        if not answer.endswith(b"\n"):
            time.sleep(1)  # no answer: it is not on disk, so the same bytes again
    if b'"error"' in answer:
        sys.exit(answer.decode())
