/*
 * The system refuses: failing MODEL MANIFEST AUDIT. The program stands between the library and the C library, and lets the first, the second, the third ... call of a
 * kind fail: opening, reading, mapping, writing, forcing to the disk, starting a thread, large allocations. Each time a model is verified, opened with an audit
 * log, used and freed. Whatever failed, each call answers with a status of its documentation, what succeeded is freed, no descriptor is left open, and
 * the log is whole but for its last line. Linux.
 */
#define _GNU_SOURCE
#include "mistral.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#define CHECK(condition, ...)                                                                     \
  do {                                                                                            \
    if (!(condition)) {                                                                           \
      armed = NOTHING;                                                                            \
      fprintf(stderr, "line %d, %s number %ld: ", __LINE__, kind_names[kind], nth);               \
      fprintf(stderr, __VA_ARGS__);                                                               \
      fprintf(stderr, "\n");                                                                      \
      exit(1);                                                                                    \
    }                                                                                             \
  } while (0)

/* What an allocation must be at least to be one that an input has the say over. */
#define LARGE ((size_t)4 << 20)

enum kind { NOTHING, OPEN, READ, MAP, WRITE, SYNC, THREAD, ALLOCATE, KINDS };
static const char *const kind_names[KINDS] = {"nothing", "open", "read", "map", "write", "sync", "thread", "large allocation"};

static enum kind kind;
static long nth;
/* Set while the library is called. */
static atomic_int armed;
static atomic_long seen;
static long failed;

static int fails(enum kind which) {
  if (atomic_load(&armed) != (int)which || atomic_fetch_add(&seen, 1) + 1 != nth) return 0;
  failed++;
  return 1;
}

#define REAL(result, name, ...) (__extension__(result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

#define OPENS(name)                                                                               \
  int name(const char *path, int flags, ...) {                                                    \
    va_list rest;                                                                                 \
    va_start(rest, flags);                                                                        \
    mode_t mode = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0;                                   \
    va_end(rest);                                                                                 \
    if (fails(OPEN)) return errno = EMFILE, -1;                                                   \
    return REAL(int, #name, const char *, int, ...)(path, flags, mode);                           \
  }
OPENS(open)
OPENS(open64)

ssize_t read(int file, void *to, size_t len) {
  return fails(READ) ? (errno = EIO, -1) : REAL(ssize_t, "read", int, void *, size_t)(file, to, len);
}
ssize_t pread64(int file, void *to, size_t len, off64_t at) {
  return fails(READ) ? (errno = EIO, -1) : REAL(ssize_t, "pread64", int, void *, size_t, off64_t)(file, to, len, at);
}
void *mmap64(void *at, size_t len, int rights, int flags, int file, off64_t from) {
  return fails(MAP) ? (errno = ENOMEM, MAP_FAILED)
                    : REAL(void *, "mmap64", void *, size_t, int, int, int, off64_t)(at, len, rights, flags, file, from);
}
void *mmap(void *at, size_t len, int rights, int flags, int file, off_t from) {
  return fails(MAP) ? (errno = ENOMEM, MAP_FAILED)
                    : REAL(void *, "mmap", void *, size_t, int, int, int, off_t)(at, len, rights, flags, file, from);
}
/* Every second write that fails has written a half first, as on a disk that is full. */
ssize_t write(int file, const void *from, size_t len) {
  ssize_t (*real)(int, const void *, size_t) = REAL(ssize_t, "write", int, const void *, size_t);
  if (!fails(WRITE)) return real(file, from, len);
  if (nth % 2 == 0 && len > 1 && real(file, from, len / 2) < 0) return -1;
  return errno = ENOSPC, -1;
}
int fsync(int file) { return fails(SYNC) ? (errno = EIO, -1) : REAL(int, "fsync", int)(file); }
int fdatasync(int file) { return fails(SYNC) ? (errno = EIO, -1) : REAL(int, "fdatasync", int)(file); }
int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *with) {
  return fails(THREAD) ? EAGAIN
                       : REAL(int, "pthread_create", pthread_t *, const pthread_attr_t *, void *(*)(void *), void *)(thread, how, run, with);
}
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *malloc(size_t size) { return size >= LARGE && fails(ALLOCATE) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return count * size >= LARGE && fails(ALLOCATE) ? NULL : __libc_calloc(count, size); }

static long descriptors(void) {
  DIR *folder = opendir("/proc/self/fd");
  long found = 0;
  while (readdir(folder)) found++;
  closedir(folder);
  return found;
}

/* Whether a call succeeded; if not, that it says something that a host can act on. */
static int did(mistral_status status) {
  int before = atomic_exchange(&armed, NOTHING);
  char message[512];
  size_t len = mistral_last_error(message, sizeof message);
  CHECK(status >= MISTRAL_OK && status < MISTRAL_E_INTERNAL, "%s: %s", mistral_status_name(status), message);
  CHECK(status == MISTRAL_OK || len > 0, "%s without a message", mistral_status_name(status));
  atomic_store(&armed, before);
  return status == MISTRAL_OK;
}

/* All that there is, as far as it goes. */
static void use(const char *model_path, const char *options) {
  mistral_model *model = NULL;
  mistral_session *session = NULL, *loaded = NULL;
  mistral_buf *buf = NULL;
  static const char some[] = "{\"max_tokens\": 3}", text[] = "hello";
  static const char request[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}], \"max_tokens\": 3, \"sidecar\": true}";
  /* A cache of a size that is allocated as a large one. */
  static const char context[] = "{\"context\": 60000, \"cache_type\": \"f32\"}";
  uint32_t tokens[16];
  size_t n = 0;
  if (!did(mistral_model_open(model_path, strlen(model_path), options, strlen(options), NULL, NULL, NULL, &model))) {
    CHECK(!model, "a model that was not opened");
    return;
  }
  if (did(mistral_encode(model, text, strlen(text), NULL, 0, tokens, 16, &n)) &&
      did(mistral_session_new(model, context, strlen(context), &session))) {
    did(mistral_prefill(session, tokens, n, NULL, NULL, NULL));
    did(mistral_generate(session, tokens, n, some, strlen(some), NULL, NULL, NULL));
    if (did(mistral_session_save(session, NULL, 0, NULL, NULL, NULL, &buf))) {
      if (did(mistral_session_load(model, mistral_buf_data(buf), mistral_buf_len(buf), NULL, 0, NULL, NULL, NULL, &loaded)))
        did(mistral_session_free(loaded));
      did(mistral_buf_free(buf));
    }
    if (did(mistral_session_chat(session, request, strlen(request), NULL, NULL, NULL, &buf))) did(mistral_buf_free(buf));
    /* What failed once is not what fails always. */
    atomic_store(&armed, NOTHING);
    mistral_status status = mistral_session_reset(session);
    CHECK(status == MISTRAL_OK, "a session that cannot be reset: %s", mistral_status_name(status));
  }
  did(mistral_session_free(session));
  CHECK(mistral_model_free(model) == MISTRAL_OK, "a model that cannot be freed");
}

/* The log verifies up to its last whole line, and goes on. */
static void check_log(const char *path) {
  static const char lenient[] = "{\"allow_incomplete\": true}";
  mistral_buf *report = NULL;
  if (access(path, F_OK) != 0) return;
  mistral_status status = mistral_audit_verify(path, strlen(path), lenient, strlen(lenient), NULL, NULL, NULL, &report);
  char message[512] = "";
  if (status != MISTRAL_OK) mistral_last_error(message, sizeof message);
  CHECK(status == MISTRAL_OK, "the log: %s: %s", mistral_status_name(status), message);
  mistral_buf_free(report);
}

int main(int argc, char **argv) {
  char options[4096];
  if (argc != 4) return 2;
  for (int required = 0; required < 2; ++required) {
    int len = snprintf(options, sizeof options,
                       "{\"threads\": 3, \"quantize\": \"q8_0\", \"verify\": {\"manifest\": \"%s\"}, \"audit\": {\"path\": \"%s\", "
                       "\"required\": %s, \"sync_every\": 1, \"key\": \"00112233445566778899aabbccddeeff\"}}",
                       argv[2], argv[3], required ? "true" : "false");
    if (len < 0 || (size_t)len >= sizeof options) return 2;
    use(argv[1], options);
    long before = descriptors();
    for (kind = OPEN; kind < KINDS; ++kind) {
      long reached = 0;
      for (nth = 1; nth < 500; ++nth) {
        atomic_store(&seen, 0);
        failed = 0;
        atomic_store(&armed, kind);
        use(argv[1], options);
        atomic_store(&armed, NOTHING);
        if (!failed) break;
        reached++;
        long after = descriptors();
        CHECK(after == before, "%ld descriptors instead of %ld", after, before);
        check_log(argv[3]);
      }
      CHECK(nth < 500, "there is no end");
      /* How a file is read is the library's to choose: by maps, here. */
      CHECK(reached > 0 || kind == READ, "nothing of this kind was called");
    }
  }
  /* And everything works again. */
  kind = NOTHING;
  use(argv[1], options);
  check_log(argv[3]);
  return 0;
}
