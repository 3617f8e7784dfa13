// Deleting everything is a call of the API: only its answer can take the cookie away.
document.addEventListener('submit', async event => {
  if (event.target.id !== 'delete') return;
  event.preventDefault();
  const told = document.getElementById('deleted');
  const answer = await fetch('/api/me', {method: 'DELETE'}).catch(() => null);
  told.textContent = answer?.ok ? 'Everything of yours is deleted.' : 'That did not work. Try again in a moment.';
  if (!answer?.ok) return;
  for (const kept of [localStorage, sessionStorage]) Object.keys(kept).filter(key => key.startsWith('hustings-')).forEach(key => kept.removeItem(key));
  setTimeout(() => location.reload(), 1500);
});
