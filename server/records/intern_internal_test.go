package records

import (
	"reflect"
	"strings"
	"testing"
	"unsafe"
)

// TestKeysOfCachesKeepNoBatch: texts of a batch share its memory, and a key that is remembered must not hold on to that.
func TestKeysOfCachesKeepNoBatch(t *testing.T) {
	batch := strings.Repeat("0123456789", 20)
	for _, of := range []func(batch string) (key, own any){
		ownOf[sourceKey], ownOf[bootKey], ownOf[streamKey], ownOf[originKey], ownOf[subjectKey], ownOf[seriesKey], ownOf[formKey], ownOf[channelKey],
	} {
		key, own := of(batch)
		if key != own {
			t.Errorf("%+v is remembered as %+v", key, own)
		}
		v := reflect.ValueOf(own)
		for i := range v.NumField() {
			if f := v.Field(i); f.Kind() == reflect.String && within(f.String(), batch) {
				t.Errorf("%s.%s is a part of the batch", v.Type(), v.Type().Field(i).Name)
			}
		}
	}
}

// ownOf makes a key all of whose texts are parts of batch, each another, and what is remembered of it.
func ownOf[K interned[K]](batch string) (key, own any) {
	var k K
	v := reflect.ValueOf(&k).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.String {
			*(*string)(unsafe.Pointer(f.UnsafeAddr())) = batch[i : i+5+i%3]
		}
	}
	return k, k.owned()
}

func within(text, of string) bool {
	at, from := uintptr(unsafe.Pointer(unsafe.StringData(text))), uintptr(unsafe.Pointer(unsafe.StringData(of)))
	return at >= from && at < from+uintptr(len(of))
}
