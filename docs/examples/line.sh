#!/bin/sh
# line.sh SOCKET: one heart rate a line of standard input; each is sent until the gateway has it on disk. Needs socat.
boot=$(cat /proc/sys/kernel/random/uuid) n=0
while read -r bpm; do
	n=$((n + 1)) answer=
	line="{\"id\":\"$boot-$n\",\"bed\":\"ICU^07\",\"device\":\"shell\",\"time\":\"$(date -u +%FT%TZ)\","
	line="$line\"observations\":[{\"code\":\"MDC_ECG_HEART_RATE\",\"value\":$bpm,\"unit\":\"/min\"}]}"
	while :; do
		answer=$(printf '%s\n' "$line" | socat -t 10 - "UNIX-CONNECT:$1") && [ -n "$answer" ] && break
		sleep 1 # no answer: it is not on disk, so the same bytes again
	done
	case $answer in *'"error"'*) echo "$answer" >&2 && exit 1 ;; esac
done
