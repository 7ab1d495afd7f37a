/* What the process holds, and that it stays so. */
#ifndef RESOURCES_H
#define RESOURCES_H

#include "check.h"

#include <dirent.h>
#include <malloc.h>
#include <time.h>
#include <unistd.h>

typedef struct { long descriptors, threads, maps; size_t allocated, resident; } resources;

static long entries(const char *folder) {
  long count = 0;
  DIR *found = opendir(folder);
  CHECK(found != NULL);
  while (readdir(found)) count++;
  closedir(found);
  return count - 2;
}

static long lines(const char *path) {
  long count = 0;
  int c;
  FILE *file = fopen(path, "r");
  CHECK(file != NULL);
  while ((c = getc(file)) != EOF) count += c == '\n';
  fclose(file);
  return count;
}

static resources measure(void) {
  resources now;
  long pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  CHECK(file != NULL && fscanf(file, "%*d %ld", &pages) == 1);
  fclose(file);
  now.resident = (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
  now.descriptors = entries("/proc/self/fd");
  now.threads = entries("/proc/self/task");
  now.maps = lines("/proc/self/maps");
  now.allocated = mallinfo2().uordblks;
  return now;
}

/* A thread that was joined may be listed for a moment more. */
static resources measure_when_threads_are(long threads) {
  resources now = measure();
  int tries;
  struct timespec pause = {0, 1000000};
  for (tries = 0; tries < 2000 && now.threads > threads; tries++) {
    nanosleep(&pause, NULL);
    now = measure();
  }
  return now;
}

/*
 * Descriptors and threads are to be the same. What the allocator counts as used includes the small blocks that it keeps for each thread,
 * and the pages that it gives back depend on where the last block of each heap lies: hence the room, which is less than a leak of 16 bytes
 * or half a page in each of a thousand cycles would take.
 */
static void check_flat(const resources *before, const resources *after) {
  CHECK(after->descriptors == before->descriptors);
  CHECK(after->threads == before->threads);
  CHECK(after->maps <= before->maps + 8);
  CHECK(after->allocated <= before->allocated + (16 << 10));
  CHECK(after->resident <= before->resident + (2 << 20));
}

#endif
