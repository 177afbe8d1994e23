// Package api holds the .proto files of Husk's own interfaces and, in the folders
// below, the code that is generated from them.
package api

//go:generate ./generate.sh
