// Times are sent in UTC and shown in the browser's own zone.
const showTimes = () => document.querySelectorAll('time[datetime]:not([data-shown])').forEach(time => {
  const when = new Date(time.dateTime), today = when.toDateString() === new Date().toDateString();
  const clock = {hour: '2-digit', minute: '2-digit'};
  time.textContent = when.toLocaleString([], today ? clock : {day: 'numeric', month: 'short', ...clock});
  time.title = when.toLocaleString();
  time.dataset.shown = '';
});
new MutationObserver(showTimes).observe(document.documentElement, {childList: true, subtree: true});
