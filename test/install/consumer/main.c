/* The same program through the C interface. */
#include <ferry/ferry.h>
#include <stdio.h>

struct captures {
  uint64_t* p;
};

static void square(const void* captures, uint64_t first, uint64_t count) {
  const struct captures* c = captures;
  for (uint64_t i = first; i < first + count; ++i) c->p[i] = ferry_in_device() ? i * i : 0;
}

int main(void) {
  const uint64_t n = 100000;
  ferry_error error = {0};
  struct captures c = {ferry_alloc(n * sizeof(uint64_t), FERRY_AUTOMATIC, &error)};
  uint64_t sum = 0;
  if (c.p == NULL || ferry_run(square, &c, sizeof c, n, 0, "square", &error) != FERRY_OK) {
    fprintf(stderr, "%s\n", error.text);
    return 2;
  }
  for (uint64_t i = 0; i < n; ++i) sum += c.p[i];
  printf("sum of squares on the device: %llu\n", (unsigned long long)sum);
  return sum == (n - 1) * n * (2 * n - 1) / 6 && ferry_free(c.p, &error) == FERRY_OK ? 0 : 1;
}
