/* The public header is C, and can be used from C: a circle of two, told. */
#include <ferry/progress.h>

size_t ferry_test_circle_from_c(char* buffer, size_t bytes) {
  ferry_progress_what what = FERRY_PROGRESS_SIGNAL_OUTSIDE;
  ferry_progress* model = ferry_progress_create();
  const ferry_progress_class work = ferry_progress_define(model, FERRY_PROGRESS_WORK, "job");
  const ferry_progress_node a = ferry_progress_add(model, work, 1, 0);
  const ferry_progress_node b = ferry_progress_add(model, work, 2, FERRY_PROGRESS_ANY);
  size_t length = 0;
  if (ferry_progress_wait(model, a, b, NULL) == FERRY_PROGRESS_REPORTED) {
    length = ferry_progress_take(model, &what, buffer, bytes); /* jobs wait for jobs */
  }
  if (ferry_progress_wait(model, b, a, "needs") == FERRY_PROGRESS_REPORTED) {
    length = ferry_progress_take(model, &what, buffer, bytes);
  }
  ferry_progress_destroy(model);
  return what == FERRY_PROGRESS_CIRCLE ? length : 0;
}

/* Numbers that are in no enumeration, which C++ could not pass. 1: refused. */
int ferry_test_unknown_numbers(void) {
  ferry_progress* model = ferry_progress_create();
  const int kind = 99;
  const int what = 77;
  const int refused = ferry_progress_define(model, (ferry_progress_kind)kind, "x") == FERRY_PROGRESS_BAD_ARGUMENT &&
                      ferry_progress_what_text((ferry_progress_what)what)[0] == 'u';
  ferry_progress_destroy(model);
  return refused;
}
