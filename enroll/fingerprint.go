package enroll

// Fingerprint is the short form of an EK hash by which people match the box in their hands with a line on a screen: the first 80
// bits in base32, four groups of four letters. It selects among waiting gateways; the whole hash decides.
func Fingerprint(ek [32]byte) string {
	return grouped(ek[:10])
}
