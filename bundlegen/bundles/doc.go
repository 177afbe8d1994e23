// Package bundles keeps containers and pods in containers/storage, in the store of a
// stock CRI-O that may run at the same time, and makes their bundles.
//
// # What is kept
//
// A container is an ordinary container of containers/storage. Its metadata is Husk's
// JSON, under the one key "husk"; its config.json lies in the container directory as a
// template, and [Store.Finish] makes the runtime's bundle from it in the run directory.
// A pod has no record of its own: it is the set of containers with the same pod ID, and
// what is known of it is in the metadata of each. The sandbox's is what counts.
//
// containers/storage makes an empty layer with every container, on none of the image's:
// a record has none. It cannot be left out and costs two directories (with the writing
// of layers.json about half of the time of a Create). Nothing is ever mounted from it.
// A sandbox has no image. Records and layers are synced to disk, as CRI-O's ("volatile")
// are not: a power cut must not lose a container that a user has yet to look at. It
// costs one or two milliseconds.
//
// The metadata has a version, and is at most [MaxMetadata] long. An unknown field is
// refused like an unknown version, because the next change would drop it: such a
// container is not listed, is never written, and can be removed.
//
// # Whole or not at all
//
// Before the first thing of a container is made, and before the first is removed, its
// ID is written to the directory husk-pending in the graph root; the mark goes last. A
// container with a mark is not seen. All of that happens under Husk's lock, which the
// kernel releases when its holder dies, so a mark that is found under the lock belongs to
// a process that was killed: [Store.Sweep] then removes whatever there is. The template
// is known by its digest, so that one which a power cut or a hand has changed is not run.
//
// # Next to others
//
// A container is Husk's by its name in containers/storage, husk:container:NAME, which no
// other tool gives. Whatever else is in the store, and whatever metadata it carries,
// is neither shown nor touched. The other way round, with CRI-O 1.34 (test/49-bundles.bats):
//
//   - It does not list Husk's containers, since their metadata has none of its keys, and
//     leaves them alone when it starts, restores, repairs after a kill -9, and wipes its
//     own containers and images after a reboot or an upgrade (internal_wipe, crio wipe).
//   - An image that a container of Husk's was made from is in use: neither husk rm nor
//     CRI-O removes it. A repair that removes an image because it is damaged removes the
//     containers made from it, Husk's too.
//   - After a reboot without a clean shutdown, crio wipe, where it is run, removes the whole
//     storage, and Husk's containers with it.
//
// podman ps --external shows them, as it shows CRI-O's, and podman rm removes them when
// told to by their ID. What is left of them here is then nothing.
package bundles
