package crioconf

// storageDrivers are those of containers/storage that husk is built with.
func storageDrivers() []string { return []string{"aufs", "overlay", "overlay2", "vfs", "zfs"} }

// handlerKeys are the keys of [crio.runtime.runtimes.NAME] in CRI-O 1.34 (pkg/config,
// RuntimeHandler).
func handlerKeys() []string {
	return []string{
		"allowed_annotations", "container_min_memory", "default_annotations", "inherit_default_runtime", "monitor_cgroup",
		"monitor_env", "monitor_exec_cgroup", "monitor_path", "no_sync_log", "platform_runtime_paths",
		"privileged_without_host_devices", "runtime_config_path", "runtime_path", "runtime_pull_image", "runtime_root", "runtime_type",
	}
}
