// Ends the operator's session; the chat stays.
document.addEventListener('click', async event => {
  if (!event.target.closest('[data-log-out]')) return;
  await fetch('/api/logout', {method: 'POST'});
  location.assign('/login');
});
