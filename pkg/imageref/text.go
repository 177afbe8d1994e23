package imageref

// The value types travel between processes as text: what String returns, and ""
// for the zero value. Reading checks as parsing does.

// MarshalText implements encoding.TextMarshaler.
func (m ManifestDigest) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *ManifestDigest) UnmarshalText(text []byte) error {
	return unmarshal(m, text, ParseManifestDigest)
}

// MarshalText implements encoding.TextMarshaler.
func (c ConfigDigest) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *ConfigDigest) UnmarshalText(text []byte) error {
	return unmarshal(c, text, ParseConfigDigest)
}

// MarshalText implements encoding.TextMarshaler.
func (i ImageID) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *ImageID) UnmarshalText(text []byte) error { return unmarshal(i, text, ParseImageID) }

// MarshalText implements encoding.TextMarshaler.
func (s StorageID) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *StorageID) UnmarshalText(text []byte) error { return unmarshal(s, text, ParseStorageID) }

// MarshalText implements encoding.TextMarshaler.
func (r Reference) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Reference) UnmarshalText(text []byte) error { return unmarshal(r, text, ParseReference) }

// unmarshal reads one value; empty text is its zero value.
func unmarshal[T any](to *T, text []byte, parse func(string) (T, error)) error {
	var value T
	if len(text) > 0 {
		var err error
		if value, err = parse(string(text)); err != nil {
			return err
		}
	}
	*to = value
	return nil
}
