package handover

// Lock is what starting husks take turns by.
var Lock = lock
