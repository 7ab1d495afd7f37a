/*
 * What the library takes from its surroundings without being told: surroundings MODEL. The program stands between the library and the
 * C library, and writes down each call that asks for the environment, the working folder, the user, a file other than the model, a
 * socket, another process or a signal. Prints those that there were, and fails. Linux.
 */
#define _GNU_SOURCE
#include "mistral.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#define OK(call)                                                                                  \
  do {                                                                                            \
    mistral_status status_ = (call);                                                              \
    if (status_ != MISTRAL_OK) {                                                                  \
      char message_[512];                                                                         \
      mistral_last_error(message_, sizeof message_);                                              \
      fprintf(stderr, "%s: %s: %s\n", #call, mistral_status_name(status_), message_);             \
      exit(1);                                                                                    \
    }                                                                                             \
  } while (0)

#define CALLS 64

static char calls[CALLS][200];
static atomic_uint count;
static const char *model_path;

static void note(const char *function, const char *argument) {
  unsigned at = atomic_fetch_add(&count, 1);
  if (at < CALLS) snprintf(calls[at], sizeof calls[at], "%s(%s)", function, argument ? argument : "");
}

/* These are found before those of the C library. */
char *getenv(const char *name) { note("getenv", name); return NULL; }
char *secure_getenv(const char *name) { note("secure_getenv", name); return NULL; }
int setenv(const char *name, const char *value, int o) { (void)value; (void)o; note("setenv", name); return -1; }
int putenv(char *text) { note("putenv", text); return -1; }
char *getcwd(char *to, size_t size) { (void)to; (void)size; note("getcwd", NULL); errno = ENOENT; return NULL; }
int chdir(const char *path) { note("chdir", path); return -1; }
struct passwd *getpwuid(uid_t id) { (void)id; note("getpwuid", NULL); return NULL; }
int getpwuid_r(uid_t id, struct passwd *p, char *b, size_t n, struct passwd **r) {
  (void)id; (void)p; (void)b; (void)n; *r = NULL; note("getpwuid_r", NULL); return ENOENT;
}
int socket(int a, int b, int c) { (void)a; (void)b; (void)c; note("socket", NULL); return -1; }
pid_t fork(void) { note("fork", NULL); return -1; }
int execve(const char *path, char *const a[], char *const e[]) { (void)a; (void)e; note("execve", path); return -1; }
sighandler_t signal(int number, sighandler_t to) { (void)number; (void)to; note("signal", NULL); return SIG_ERR; }
int sigaction(int number, const struct sigaction *to, struct sigaction *from) {
  (void)number; (void)to; (void)from; note("sigaction", NULL); return -1;
}

/* The model, and where Linux says how many processors the process may use. */
static void note_file(const char *function, const char *path) {
  if (strcmp(path, model_path) != 0 && strncmp(path, "/proc/self/", 11) != 0 && strncmp(path, "/sys/fs/cgroup/", 15) != 0)
    note(function, path);
}

#define OPEN(name)                                                          \
  int name(const char *path, int flags, ...) {                              \
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
    va_list rest;                                                           \
    va_start(rest, flags);                                                  \
    mode_t mode = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0;             \
    va_end(rest);                                                           \
    note_file(#name, path);                                                 \
    return real(path, flags, mode);                                         \
  }
OPEN(open)
OPEN(open64)

/* The variables lie where nobody can read: whoever goes past `getenv` ends the process. */
static void hide_environment(void) {
  void *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) exit(1);
  environ = page;
}

static int32_t ignore_chunk(void *user_data, const char *chunk, size_t len) {
  (void)user_data; (void)chunk; (void)len;
  return 0;
}

static int32_t ignore_event(void *user_data, const mistral_event *event) {
  (void)user_data; (void)event;
  return 0;
}

static void use(const char *options) {
  mistral_model *model = NULL;
  mistral_session *session = NULL;
  mistral_buf *buf = NULL;
  uint32_t tokens[32];
  size_t n = 0;
  static const char context[] = "{\"context\": 64}", text[] = "hello";
  static const char sampled[] = "{\"max_tokens\": 4, \"temperature\": 1.0, \"top_p\": 0.9, \"stop\": [\"x\"]}";
  static const char request[] =
      "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}], \"max_tokens\": 4, \"stream\": true}";
  static const char bound[] =
      "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}], \"max_tokens\": 8, \"response_format\": {\"type\": \"json_object\"}}";
  static const char wrong[] = "{\"messages\": 3}";
  OK(mistral_model_open(model_path, strlen(model_path), options, strlen(options), NULL, NULL, NULL, &model));
  OK(mistral_model_info(model, &buf));
  OK(mistral_buf_free(buf));
  OK(mistral_encode(model, text, strlen(text), NULL, 0, tokens, 32, &n));
  OK(mistral_session_new(model, context, strlen(context), &session));
  OK(mistral_prefill(session, tokens, n, NULL, NULL, NULL));
  OK(mistral_generate(session, tokens, n, sampled, strlen(sampled), NULL, ignore_event, NULL));
  OK(mistral_chat(model, request, strlen(request), NULL, ignore_chunk, NULL, &buf));
  OK(mistral_buf_free(buf));
  OK(mistral_chat(model, bound, strlen(bound), NULL, NULL, NULL, &buf));
  OK(mistral_buf_free(buf));
  if (mistral_chat(model, wrong, strlen(wrong), NULL, NULL, NULL, &buf) == MISTRAL_OK) exit(1);
  OK(mistral_session_free(session));
  OK(mistral_model_free(model));
}

int main(int argc, char **argv) {
  mistral_model *model = NULL;
  if (argc != 2) return 2;
  model_path = argv[1];
  /* The interception works. */
  (void)!getenv("SEEN");
  if (atomic_load(&count) != 1 || strcmp(calls[0], "getenv(SEEN)") != 0) return 3;
  atomic_store(&count, 0);
  hide_environment();
  use("{\"threads\": 3}");
  use("{\"device\": \"ndarray\"}");
  /* A file that is not there: it is looked for where the host said, and only there. */
  model_path = "/nowhere/at/all.gguf";
  if (mistral_model_open(model_path, strlen(model_path), NULL, 0, NULL, NULL, NULL, &model) != MISTRAL_E_IO) return 4;
  for (unsigned i = 0; i < atomic_load(&count) && i < CALLS; i++) fprintf(stderr, "%s\n", calls[i]);
  return atomic_load(&count) != 0;
}
