package storetest_test

import (
	"testing"

	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/imageref"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(*testing.T) storetest.Harness {
		m := &storetest.Memory{}
		return storetest.Harness{
			Store:    m,
			SetInUse: func(_ *testing.T, id imageref.StorageID, inUse bool) { m.SetInUse(id, inUse) },
		}
	})
}
