// The pause binary of the test node's pods. It must die on SIGTERM: one that does not makes StopPodSandbox
// wait for its whole grace period. It reaps, because in a shared pid namespace it is everybody's init.
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

static void down(int sig) {
	(void)sig;
	_exit(0);
}

static void reap(int sig) {
	(void)sig;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

int main(void) {
	struct sigaction on_term = {.sa_handler = down};
	struct sigaction on_child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};

	if (sigaction(SIGINT, &on_term, NULL) != 0 || sigaction(SIGTERM, &on_term, NULL) != 0 ||
	    sigaction(SIGCHLD, &on_child, NULL) != 0)
		return 1;
	for (;;)
		pause();
}
