/*
 * What ThreadSanitizer cannot see in a standard library that was built without it (tests/sanitize.sh): where a lock, a condition variable or a
 * Once of std takes its slow path, the happens-before edge is told here; the linker puts these functions around std's (--wrap). Nothing is
 * suppressed: a race in instrumented code, ours and every dependency's, is still one.
 */
#include <stdbool.h>
#include <stdint.h>

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define REAL(name) PASTE(__real_, name)
#define WRAP(name) PASTE(__wrap_, name)

void __tsan_acquire(void *);
void __tsan_release(void *);

/* The unlock, an inlined store with release order, is instrumented, and releases the same address. */
void REAL(LOCK)(char *);
void WRAP(LOCK)(char *mutex) {
  REAL(LOCK)(mutex);
  __tsan_acquire(mutex);
}

/* Two words: which of them the state is, is the compiler's choice. */
void REAL(READ)(char *);
void WRAP(READ)(char *lock) {
  REAL(READ)(lock);
  __tsan_acquire(lock);
  __tsan_acquire(lock + 4);
}

void REAL(WRITE)(char *);
void WRAP(WRITE)(char *lock) {
  REAL(WRITE)(lock);
  __tsan_acquire(lock);
  __tsan_acquire(lock + 4);
}

/* Unlocks the mutex and locks it again. */
void REAL(WAIT)(char *, char *);
void WRAP(WAIT)(char *condvar, char *mutex) {
  __tsan_release(mutex);
  REAL(WAIT)(condvar, mutex);
  __tsan_acquire(mutex);
}

void REAL(ONCE)(char *, bool, void *, const void *, const void *);
void WRAP(ONCE)(char *once, bool ignore_poison, void *closure, const void *methods, const void *location) {
  REAL(ONCE)(once, ignore_poison, closure, methods, location);
  __tsan_acquire(once);
  __tsan_release(once);
}

/*
 * The last owner of an Arc synchronises with the others by an acquire fence, which the sanitizer does not model; a std built for it loads
 * instead. Here every decrement acquires: that hides a missing fence, and nothing else.
 */
int64_t REAL(__tsan_atomic64_fetch_sub)(volatile int64_t *, int64_t, int);
int64_t WRAP(__tsan_atomic64_fetch_sub)(volatile int64_t *counter, int64_t value, int order) {
  enum { ACQ_REL = 4, SEQ_CST = 5 };
  return REAL(__tsan_atomic64_fetch_sub)(counter, value, order == SEQ_CST ? SEQ_CST : ACQ_REL);
}
