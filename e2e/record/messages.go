package main

const who = "PID|||CANARY7^^^HOSP&1.2.3&ISO\rOBR|1|||X|||20261122120000+0000\r"

func head(event, control string) string {
	return "MSH|^~\\&|MON|ICU|WL|WL|20261122120000+0000||" + event + "|" + control + "|T|2.6|||AL|NE\r" + who
}

func vitals(control, value string) string {
	return head("ORU^R01^ORU_R01", control) +
		"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.5.1.1|" + value + "|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\r"
}

func alarm(control string) string {
	return head("ORU^R40^ORU_R40", control) +
		"OBX|1|ST|196616^MDC_EVT_ALARM^MDC|1.5.1.1.1|High heart rate||||||F\r" +
		"OBX|2|NM|147842^MDC_ECG_HEART_RATE^MDC|1.5.1.1.2|151|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\r"
}

func waveform(control string) string {
	return head("ORU^W01^ORU_W01", control) +
		"OBX|1|CD|131330&CHN^MDC_ECG_ELEC_POTL_II^MDC|1.4.1.0|1&II^II&^0.001&266418&MDC_DIM_MILLI_VOLT&MDC^1&0&0^500^-2048&2047\r" +
		"OBX|2|NA|131330&WAV^MDC_ECG_ELEC_POTL_II^MDC|1.4.1.0|1^2^3^-4^5^6^" + control[1:] + "||||||F\r"
}
