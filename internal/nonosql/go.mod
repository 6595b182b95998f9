module github.com/smallstep/nosql

go 1.26
