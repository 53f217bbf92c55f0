/* A duplicate of another process's file descriptor (Linux 5.6): how a new
 * supervisor adopts the public sockets of the one that died. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel.h"

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

int ek_pidfd_getfd(int pidfd, int fd)
{
    long result = syscall(SYS_pidfd_getfd, pidfd, fd, 0);
    return result < 0 ? -errno : (int)result;
}
